//! What is counted is what the guest has asked for, whatever becomes of the processes that count.

use test_support::frontend::client::Status;
use test_support::{AttachOptions, Disk, expect_success};

use super::{Exporter, Scrape};
use crate::supervise::{MIB_8, is_qsd, next_data_plane, serving, settle};

const REQUESTS: &str = "sealdisk_disk_requests_total";
const BYTES: &str = "sealdisk_disk_bytes_total";
const ERRORS: &str = "sealdisk_disk_request_errors_total";

/// What was asked for until now.
#[derive(Default)]
struct Expected {
    reads: f64,
    writes: f64,
    flushes: f64,
}

impl Expected {
    fn assert(&self, scrape: &Scrape, when: &str) {
        let Self {
            reads,
            writes,
            flushes,
        } = *self;
        for (name, operation, expected) in [
            (REQUESTS, "read", reads),
            (REQUESTS, "write", writes),
            (REQUESTS, "flush", flushes),
            (BYTES, "read", reads * 4096.0),
            (BYTES, "write", writes * 8192.0),
            (
                "sealdisk_disk_request_duration_seconds_count",
                "write",
                writes,
            ),
            (ERRORS, "write", 0.0),
        ] {
            let counted = scrape.counted(name, operation);
            assert_eq!(
                counted,
                Some(expected),
                "{name} of {operation}, {when}\n{}",
                scrape.0
            );
        }
    }
}

#[test]
fn counters_survive_deaths_of_the_data_plane_and_upgrades() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let exporter = Exporter::of(&disk);
    let mut frontend = daemon.connect();
    let mut expected = Expected::default();
    expected.assert(&exporter.scrape(), "at the beginning");
    for (round, when) in ["as attached", "after a death", "after an upgrade"]
        .iter()
        .enumerate()
    {
        match round {
            0 => {}
            1 => {
                let dead = next_data_plane(&daemon, 0);
                settle(dead);
                test_support::kill(dead);
                next_data_plane(&daemon, dead);
            }
            _ => drop(expect_success(&mut disk.command("upgrade disk"))),
        }
        for queue in &mut frontend.queues {
            for sector in 0..3 {
                queue.write(sector * 16, &[7; 8192]).unwrap();
                queue.read(sector * 16, 4096).unwrap();
            }
            queue.flush().unwrap();
            expected.reads += 3.0;
            expected.writes += 3.0;
            expected.flushes += 1.0;
        }
        expected.assert(&exporter.scrape(), when);
    }
    // The connection of the frontend ends, and the memory in which requests are in flight is another one.
    drop(frontend);
    let dead = next_data_plane(&daemon, 0);
    settle(dead);
    test_support::kill(dead);
    next_data_plane(&daemon, dead);
    let scrape = exporter.scrape();
    expected.assert(&scrape, "after a death without a frontend");
    let restarts = scrape.value("sealdisk_disk_data_plane_restarts_total{disk=\"disk\"}");
    assert_eq!(restarts, Some(2.0));
    assert_eq!(serving(&disk)["restarts"], 2);
    daemon.stop();
}

#[test]
fn each_operation_is_counted_with_its_errors() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions::default());
    let exporter = Exporter::of(&disk);
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    queue.write(0, &[7; 4096]).unwrap();
    // Behind the end of the disk.
    assert_eq!(queue.write(MIB_8 / 512, &[7; 512]), Err(Status::IoErr));
    queue.discard(&[(0, 8, 0)]).unwrap();
    queue.write_zeroes(&[(8, 16, 0)]).unwrap();
    queue.get_id().unwrap();
    let scrape = exporter.scrape();
    let counted = |name, operation| scrape.counted(name, operation).unwrap_or(-1.0);
    for (operation, requests, errors) in [
        ("write", 2.0, 1.0),
        ("discard", 1.0, 0.0),
        ("write-zeroes", 1.0, 0.0),
        ("get-id", 1.0, 0.0),
        ("read", 0.0, 0.0),
    ] {
        assert_eq!(
            counted(REQUESTS, operation),
            requests,
            "{operation}\n{}",
            scrape.0
        );
        assert_eq!(counted(ERRORS, operation), errors, "{operation}");
    }
    assert_eq!(counted(BYTES, "write"), 4096.0);
    assert_eq!(counted(BYTES, "discard"), 4096.0);
    assert_eq!(counted(BYTES, "write-zeroes"), 8192.0);
    assert_eq!(
        scrape.value("sealdisk_disk_in_flight_requests{disk=\"disk\"}"),
        Some(0.0)
    );
    drop(frontend);
    daemon.stop();
}

#[test]
fn waits_for_a_limit_are_counted() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    let daemon = disk.attach(&AttachOptions {
        arguments: &["--iops", "50", "--iops-burst", "1"],
        ..AttachOptions::default()
    });
    let exporter = Exporter::of(&disk);
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    for _ in 0..10 {
        queue.arena.reset();
        queue.read(0, 512).unwrap();
    }
    let scrape = exporter.scrape();
    let of_disk = |name| scrape.value(&format!("{name}{{disk=\"disk\"}}"));
    let waits = of_disk("sealdisk_disk_limit_waits_total").unwrap();
    let seconds = of_disk("sealdisk_disk_limit_wait_seconds_total").unwrap();
    assert!(
        waits >= 5.0 && seconds > 0.0,
        "{waits} waits of {seconds} s"
    );
    drop(frontend);
    daemon.stop();
}
