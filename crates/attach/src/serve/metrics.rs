//! What an attached disk counts, for whoever watches it: the answer to [`Request::Metrics`], and both ends of the
//! question.
//!
//! Nothing here waits: who asks for many disks at once does that by itself.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::serve::attached_disk::AttachedDisk;
use crate::serve::control_name::{disk_of, waited_for_at};
use crate::serve::control_request::{Reply, Request};
use crate::serve::event_hub::EventHub;
use crate::serve::keeping::Counted;
use crate::status::{AttachedLayer, DiskMetrics, KeyStatus, ToldEvent};
use disks::Disk;

/// Bytes of an answer at most: all buckets of all operations are a fraction of that.
pub const MAX_METRICS: u64 = 256 * 1024;

/// A disk that is attached here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedHere {
    /// The disk's id.
    pub disk: Uuid,
    /// Where its attach is asked.
    pub socket: PathBuf,
    /// How many attaches wait for the disk, or have let go of it.
    pub waiting: usize,
}

/// The disks that are attached with a runtime directory, in the order of their ids. One whose attach was killed may be
/// among them: it does not answer.
///
/// # Errors
/// What the kernel says; a directory that is not there has no disks.
pub fn attached_here(runtime_dir: &Path) -> io::Result<Vec<AttachedHere>> {
    let entries = match std::fs::read_dir(runtime_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let (mut found, mut waiting) = (Vec::new(), HashMap::<Uuid, usize>::new());
    for entry in entries {
        let socket = entry?.path();
        if let Some(disk) = disk_of(&socket) {
            found.push((disk, socket));
        } else if let Some(disk) = waited_for_at(&socket) {
            *waiting.entry(disk).or_default() += 1;
        }
    }
    found.sort();
    let here = |(disk, socket)| AttachedHere {
        disk,
        socket,
        waiting: waiting.get(&disk).copied().unwrap_or_default(),
    };
    Ok(found.into_iter().map(here).collect())
}

/// What is known of a disk, by what its attach knows to tell.
#[derive(Debug)]
pub enum MetricsAnswer {
    /// All of it.
    Metrics(Box<DiskMetrics>),
    /// Of an older version, which does not count: what it knows of the key.
    Status(Box<KeyStatus>),
    /// An older version does not know the question; there is another for it.
    Unknown,
}

/// The line by which an attach is asked, and by which one of an older version is.
pub fn metrics_question(older: bool) -> String {
    line_of(&match older {
        true => Request::Status,
        false => Request::Metrics,
    })
}

/// The line by which an attach is asked for the events that it keeps. It answers with a line of JSON for each, which
/// [`ToldEvent::of_line`] reads.
pub fn events_question() -> String {
    line_of(&Request::Events { follow: false })
}

fn line_of(request: &Request) -> String {
    // A name has no reason to fail.
    let mut line = serde_json::to_string(request).unwrap_or_default();
    line.push('\n');
    line
}

/// What an attach has answered to [`metrics_question`].
///
/// # Errors
/// Why that is no answer, as the end of a sentence.
pub fn metrics_answer(line: &str, older: bool) -> Result<MetricsAnswer, String> {
    match older {
        false => answered::<DiskMetrics>(line).map(|answer| {
            answer.map_or(MetricsAnswer::Unknown, |metrics| {
                MetricsAnswer::Metrics(Box::new(metrics))
            })
        }),
        true => answered::<KeyStatus>(line).map(|answer| {
            answer.map_or(MetricsAnswer::Unknown, |status| {
                MetricsAnswer::Status(Box::new(status))
            })
        }),
    }
}

fn answered<T: DeserializeOwned>(line: &str) -> Result<Option<T>, String> {
    if line.is_empty() {
        return Err("it was detached, or has too many clients".into());
    }
    match serde_json::from_str::<Reply<T>>(line) {
        Ok(Reply::Ok(value)) => Ok(Some(value)),
        Ok(Reply::Error(_)) => Ok(None),
        Ok(Reply::Refused(_) | Reply::NotUpgraded(_)) => Err("it answers something else".into()),
        Err(error) => Err(format!("its answer cannot be read: {error}")),
    }
}

/// What there is to answer.
pub(crate) fn metrics(
    disk: &Disk,
    attached_disk: &AttachedDisk,
    event_hub: &EventHub,
    counted: &Counted,
) -> DiskMetrics {
    // The memory is there, so that to read it cannot fail but for a fault of ours.
    let counters = counted.counters().unwrap_or_else(|error| {
        log::warn!("what the disk has counted cannot be read: {error}");
        None
    });
    let header = attached_disk.header();
    let (events, last_event) = event_hub.last();
    let layers = header.layers.iter().map(|layer| AttachedLayer {
        id: layer.id,
        size_bytes: layer.size,
        key_url: layer.envelope.key_url(),
        disk_encryption_set: layer.disk_encryption_set.clone(),
    });
    DiskMetrics {
        disk: disk.name().into(),
        disk_id: disk.id(),
        size_bytes: header.size,
        checks: event_hub.checks(),
        status: event_hub.status(),
        counters,
        limits: Some(attached_disk.limits()),
        layers: layers.collect(),
        events,
        last_event: last_event.and_then(|line| ToldEvent::of_line(&line).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_attach_is_asked_what_it_knows() {
        assert_eq!(metrics_question(false), "\"metrics\"\n");
        assert_eq!(metrics_question(true), "\"status\"\n", "as ever");
        let unknown = "{\"error\":\"unknown variant `metrics`, expected one of `limits`\"}\n";
        let answer = metrics_answer(unknown, false).unwrap();
        assert!(matches!(answer, MetricsAnswer::Unknown));
        // The status of the first version, without what came later.
        let status = r#"{"ok":{"state":"Active","since":"2025-01-01T00:00:00Z","dek":"Held","keyUrl":"u","lastCheck":"2025-01-01T00:00:00Z","lastGranted":"2025-01-01T00:00:00Z","checkIntervalSeconds":60,"graceSeconds":60,"onRevoke":"error"}}"#;
        let answer = metrics_answer(status, true).unwrap();
        assert!(matches!(answer, MetricsAnswer::Status(_)));
    }

    #[test]
    fn a_newer_attach_may_say_more() {
        let status = r#"{"state":"Active","since":"2025-01-01T00:00:00Z","dek":"Held","keyUrl":"u","lastCheck":"2025-01-01T00:00:00Z","lastGranted":"2025-01-01T00:00:00Z","checkIntervalSeconds":60,"graceSeconds":60,"onRevoke":"error","mood":"good"}"#;
        let line = format!(
            r#"{{"ok":{{"disk":"d","diskId":"{}","sizeBytes":7,"checks":{{"granted":1,"refused":0,"unknown":0}},"status":{status},"weather":1}}}}"#,
            Uuid::nil()
        );
        let MetricsAnswer::Metrics(metrics) = metrics_answer(&line, false).unwrap() else {
            panic!("no metrics");
        };
        assert_eq!((metrics.size_bytes, metrics.counters), (7, None));
        for wrong in ["", "nonsense", "{\"ok\":1}", "{\"notUpgraded\":\"why\"}"] {
            assert!(metrics_answer(wrong, false).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_later_versions_say_in_another_way_is_passed_over() {
        let status = r#"{"state":"Active","since":"2025-01-01T00:00:00Z","dek":"Held","keyUrl":"u","lastCheck":"2025-01-01T00:00:00Z","lastGranted":"2025-01-01T00:00:00Z","checkIntervalSeconds":60,"graceSeconds":60,"onRevoke":"error"}"#;
        let event = r#"{"time":"2025-01-01T00:00:00Z","event":"Struck","message":"by lightning"}"#;
        let answer = |limits: &str| {
            let line = format!(
                r#"{{"ok":{{"disk":"d","diskId":"{}","sizeBytes":7,"status":{status},"limits":{limits},"lastEvent":{event}}}}}"#,
                Uuid::nil()
            );
            match metrics_answer(&line, false).unwrap() {
                MetricsAnswer::Metrics(metrics) => metrics,
                other => panic!("{other:?}"),
            }
        };
        let known = answer(r#"{"iops":100}"#);
        assert_eq!(known.limits.unwrap().iops, Some(100));
        assert_eq!(answer(r#"{"iopsOfNights":1}"#).limits, None);
        assert_eq!(known.last_event.unwrap().message, "by lightning");
    }

    #[test]
    fn an_event_of_a_line_has_a_sentence_if_its_kind_is_known() {
        let line = |kind| {
            format!(
                r#"{{"time":"2025-01-01T00:00:00Z","event":"{kind}","disk":"d","diskId":"{}","keyUrl":"u"}}"#,
                Uuid::nil()
            )
        };
        let told = ToldEvent::of_line(&line("Attached")).unwrap();
        assert_eq!(told.message, "the disk d is attached");
        let told = ToldEvent::of_line(&line("Struck")).unwrap();
        assert_eq!((&*told.event, &*told.message), ("Struck", ""));
        assert!(ToldEvent::of_line("{}").is_err());
        assert_eq!(events_question(), "{\"events\":{\"follow\":false}}\n");
    }

    #[test]
    fn attached_disks_are_found_by_their_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = [1, 2].map(Uuid::from_u128);
        for name in [
            format!("{two}.control"),
            format!("{one}.control"),
            format!("{one}.00000007.control"),
            format!("{one}.map"),
            "other.control".into(),
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let found = attached_here(dir.path()).unwrap();
        let seen: Vec<_> = found.iter().map(|here| (here.disk, here.waiting)).collect();
        assert_eq!(seen, [(one, 1), (two, 0)]);
        assert!(attached_here(&dir.path().join("none")).unwrap().is_empty());
    }
}
