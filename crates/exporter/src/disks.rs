//! The metrics of the attached disks of a host, from what they have answered.

use std::collections::HashMap;

use time::OffsetDateTime;
use uuid::Uuid;

use attach::{
    CheckCounts, DekState, DiskHold, DiskMetrics, JobStatus, KeyState, KeyStatus, MetricsAnswer,
};
use live::{Asked, names_of};
use protocol::{IoCounters, OpCounters, Operation};

use crate::catalogue as metric;
use crate::samples::{Histogram, Samples, seconds, timestamp};

/// Adds what was answered. `names` has the names of disks by their ids, for those that do not tell theirs.
pub(crate) fn add(samples: &mut Samples, asked: &[Asked], names: &HashMap<Uuid, String>) {
    samples.put(&metric::EXPORTER_DISKS, &[], asked.len() as f64);
    for (name, one) in names_of(asked, names).iter().zip(asked) {
        add_disk(samples, name, one);
    }
}

/// Adds whether the catalog has the disks that have answered.
pub(crate) fn add_known(samples: &mut Samples, asked: &[Asked], catalog: &HashMap<Uuid, String>) {
    for (name, one) in names_of(asked, catalog).iter().zip(asked) {
        if is_up(one) {
            let is_known = flag(catalog.contains_key(&one.here.disk));
            samples.put(&metric::DISK_KNOWN, &[name], is_known);
        }
    }
}

fn is_up(asked: &Asked) -> bool {
    !matches!(asked.answer, Err(_) | Ok(MetricsAnswer::Unknown))
}

fn add_disk(samples: &mut Samples, name: &str, asked: &Asked) {
    samples.put(&metric::DISK_UP, &[name], flag(is_up(asked)));
    samples.put(&metric::DISK_WAITING, &[name], asked.here.waiting as f64);
    let status: &KeyStatus = match &asked.answer {
        Ok(MetricsAnswer::Metrics(metrics)) => {
            add_metrics(samples, name, metrics);
            &metrics.status
        }
        Ok(MetricsAnswer::Status(status)) => {
            add_status(samples, name, status);
            status
        }
        Ok(MetricsAnswer::Unknown) => return log::debug!("the disk {name} knows neither question"),
        Err(why) => return log::debug!("the disk {name} does not tell of itself: {why}"),
    };
    let id = asked.here.disk.to_string();
    let offered = status.offered.as_ref();
    let version = offered.map_or("", |offered| offered.version.as_str());
    samples.put(&metric::DISK_INFO, &[name, &id, version], 1.0);
}

fn add_metrics(samples: &mut Samples, name: &str, metrics: &DiskMetrics) {
    samples.put(&metric::DISK_SIZE, &[name], metrics.size_bytes as f64);
    add_status(samples, name, &metrics.status);
    let CheckCounts {
        granted,
        refused,
        unknown,
    } = metrics.checks;
    for (result, count) in [
        ("granted", granted),
        ("refused", refused),
        ("unknown", unknown),
    ] {
        samples.put(&metric::KEY_CHECKS, &[name, result], count as f64);
    }
    if let Some(counters) = &metrics.counters {
        add_counters(samples, name, counters);
    }
}

fn add_counters(samples: &mut Samples, name: &str, counters: &IoCounters) {
    // From the beginning, so that the first ones are an increase; what guests seldom ask for once they do.
    let always = [Operation::Read, Operation::Write, Operation::Flush];
    for operation in Operation::ALL {
        let counted = counters
            .operations
            .iter()
            .find(|c| c.operation == operation);
        match counted {
            Some(counted) => add_operation(samples, name, counted),
            None if always.contains(&operation) => {
                let none = OpCounters {
                    operation,
                    bytes: 0,
                    errors: 0,
                    latency_ticks: 0,
                    buckets: Vec::new(),
                };
                add_operation(samples, name, &none);
            }
            None => {}
        }
    }
    for (metric, value) in [
        (&metric::IN_FLIGHT, counters.in_flight as f64),
        (&metric::WAIT_FOR_SPACE, counters.wait_for_space as f64),
        (&metric::SPACE_WAITS, counters.space_waits as f64),
        (&metric::LIMIT_WAITS, counters.limit_waits as f64),
        (
            &metric::LIMIT_WAIT_SECONDS,
            seconds(counters.limit_wait_ticks),
        ),
        (&metric::KEY_WAITS, counters.key_waits as f64),
        (&metric::KEY_WAIT_SECONDS, seconds(counters.key_wait_ticks)),
        (&metric::POLL_SECONDS, seconds(counters.poll_ticks)),
    ] {
        samples.put(metric, &[name], value);
    }
}

fn add_operation(samples: &mut Samples, name: &str, counted: &OpCounters) {
    let labels = [name, counted.operation.name()];
    let histogram = Histogram::of(counted);
    samples.put(&metric::REQUESTS, &labels, histogram.count() as f64);
    samples.put(&metric::ERRORS, &labels, counted.errors as f64);
    let has_bytes = !matches!(
        counted.operation,
        Operation::Flush | Operation::GetId | Operation::Other
    );
    if has_bytes {
        samples.put(&metric::BYTES, &labels, counted.bytes as f64);
    }
    samples.put_histogram(&metric::LATENCY, &labels, histogram);
}

/// What every version knows.
fn add_status(samples: &mut Samples, name: &str, status: &KeyStatus) {
    for (state, label) in [
        (KeyState::Active, "active"),
        (KeyState::KeyUnreachable, "unreachable"),
        (KeyState::KeyRevoked, "revoked"),
    ] {
        samples.put(
            &metric::KEY_STATE,
            &[name, label],
            flag(status.state == state),
        );
    }
    samples.put(&metric::DISK_KEY, &[name, &status.key_url], 1.0);
    samples.put(
        &metric::DEK_HELD,
        &[name],
        flag(status.dek == DekState::Held),
    );
    let interval = status.check_interval_seconds as f64;
    samples.put(&metric::KEY_INTERVAL, &[name], interval);
    let mut put_time = |metric, time: OffsetDateTime| {
        samples.put(metric, &[name], timestamp(time));
    };
    put_time(&metric::KEY_SINCE, status.since);
    put_time(&metric::KEY_LAST_CHECK, status.last_check);
    put_time(&metric::KEY_LAST_GRANTED, status.last_granted);
    if let Some(until) = status.until {
        put_time(&metric::KEY_GRACE_END, until);
    }
    if let Some(offered) = &status.offered {
        if let Some(last) = &offered.last_restart {
            put_time(&metric::LAST_RESTART, last.time);
        }
        for (metric, value) in [
            (&metric::DISK_QUEUES, f64::from(offered.queues)),
            (&metric::DISK_MEMORY, offered.memory_bytes as f64),
            (&metric::DISK_HELD, flag(offered.disk == DiskHold::Held)),
            (&metric::RESTARTS, offered.restarts as f64),
        ] {
            samples.put(metric, &[name], value);
        }
    }
    if let Some(job) = &status.job {
        add_job(samples, name, job);
    }
}

fn add_job(samples: &mut Samples, name: &str, job: &JobStatus) {
    samples.put(&metric::JOB, &[name, &job.kind.to_string()], 1.0);
    for (metric, value) in [
        (&metric::JOB_DONE, job.bytes_done as f64),
        (&metric::JOB_TOTAL, job.bytes_total as f64),
        (&metric::JOB_PAUSED, flag(job.paused)),
        (&metric::JOB_HELD_UP, flag(job.error.is_some())),
    ] {
        samples.put(metric, &[name], value);
    }
}

pub(crate) fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    const STATUS: &str = r#"{"state":"KeyUnreachable","since":"2025-01-01T00:00:00Z","until":"2025-01-01T01:00:00Z","dek":"Held","keyUrl":"https://v.vault.localhost/keys/k/1","lastCheck":"2025-01-01T00:00:10Z","lastGranted":"2025-01-01T00:00:00Z","checkIntervalSeconds":60,"graceSeconds":3600,"onRevoke":"error"}"#;

    /// An attach of that disk which answers each question like this.
    fn attach(dir: &Path, disk: Uuid, answer: fn(&str) -> String) {
        use std::io::{BufRead, BufReader, Write};
        let listener = UnixListener::bind(dir.join(format!("{disk}.control"))).unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                let mut line = String::new();
                BufReader::new(&client).read_line(&mut line).unwrap();
                client.write_all(answer(&line).as_bytes()).unwrap();
            }
        });
    }

    fn samples_of(dir: &Path, names: &HashMap<Uuid, String>) -> Samples {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().unwrap();
        let patience = Duration::from_millis(500);
        let asked = runtime.block_on(live::ask_all(dir, patience)).unwrap();
        let mut samples = Samples::default();
        add(&mut samples, &asked, names);
        add_known(&mut samples, &asked, names);
        samples
    }

    #[test]
    fn disks_of_all_versions_are_told_of_and_a_hung_one_holds_up_none() {
        let dir = tempfile::tempdir().unwrap();
        let [new, old, hung, dead] = [1, 2, 3, 4].map(Uuid::from_u128);
        attach(dir.path(), new, |line| {
            assert_eq!(line, "\"metrics\"\n");
            let counters = r#"{"operations":[{"operation":"read","bytes":4096,"errors":1,"latencyTicks":1073741824,"buckets":[[3,2],[300,9]]}],"inFlight":5,"waitForSpace":0,"limitWaits":0,"limitWaitTicks":0,"spaceWaits":0,"keyWaits":0,"keyWaitTicks":0,"pollTicks":0}"#;
            format!(
                r#"{{"ok":{{"disk":"new","diskId":"{}","sizeBytes":7,"checks":{{"granted":3,"refused":0,"unknown":1}},"status":{STATUS},"counters":{counters}}}}}"#,
                Uuid::from_u128(1)
            ) + "\n"
        });
        attach(dir.path(), old, |line| match line {
            "\"status\"\n" => format!("{{\"ok\":{STATUS}}}\n"),
            _ => "{\"error\":\"unknown variant\"}\n".into(),
        });
        // It takes no clients.
        let hanging = UnixListener::bind(dir.path().join(format!("{hung}.control"))).unwrap();
        drop(UnixListener::bind(dir.path().join(format!("{dead}.control"))).unwrap());
        let names = HashMap::from([(old, "old".to_owned())]);
        let samples = samples_of(dir.path(), &names);
        for (disk, known) in [("new", 0.0), ("old", 1.0)] {
            let told = samples.value(&metric::DISK_KNOWN, &[disk]);
            assert_eq!(told, Some(known), "{disk}");
        }
        let value = |metric, labels: &[&str]| samples.value(metric, labels);
        let (hung, dead) = (hung.to_string(), dead.to_string());
        for (disk, up) in [("new", 1.0), ("old", 1.0), (&*hung, 0.0), (&*dead, 0.0)] {
            assert_eq!(value(&metric::DISK_UP, &[disk]), Some(up), "{disk}");
        }
        assert_eq!(value(&metric::EXPORTER_DISKS, &[]), Some(4.0));
        assert_eq!(value(&metric::REQUESTS, &["new", "read"]), Some(2.0));
        assert_eq!(value(&metric::ERRORS, &["new", "read"]), Some(1.0));
        assert_eq!(value(&metric::BYTES, &["new", "read"]), Some(4096.0));
        assert_eq!(value(&metric::REQUESTS, &["new", "flush"]), Some(0.0));
        assert_eq!(value(&metric::REQUESTS, &["new", "discard"]), None);
        assert_eq!(value(&metric::IN_FLIGHT, &["new"]), Some(5.0));
        assert_eq!(value(&metric::KEY_CHECKS, &["new", "unknown"]), Some(1.0));
        for disk in ["new", "old"] {
            let state = |state| value(&metric::KEY_STATE, &[disk, state]);
            assert_eq!(
                (state("active"), state("unreachable")),
                (Some(0.0), Some(1.0))
            );
            assert!(value(&metric::KEY_GRACE_END, &[disk]).is_some());
        }
        assert_eq!(value(&metric::REQUESTS, &["old", "read"]), None);
        drop(hanging);
    }

    #[test]
    fn two_disks_of_one_name_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        for id in [1, 2].map(Uuid::from_u128) {
            attach(dir.path(), id, |_| {
                format!(
                    r#"{{"ok":{{"disk":"same","diskId":"{}","sizeBytes":7,"status":{STATUS}}}}}"#,
                    Uuid::nil()
                ) + "\n"
            });
        }
        let samples = samples_of(dir.path(), &HashMap::new());
        let second = format!("same@{}", Uuid::from_u128(2));
        for name in ["same", &second] {
            assert_eq!(
                samples.value(&metric::DISK_UP, &[name]),
                Some(1.0),
                "{name}"
            );
        }
    }
}
