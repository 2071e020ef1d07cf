//! kill -9 of the data plane under load.

use std::time::{Duration, Instant};

use test_support::frontend::device::{Setup, feature};
use test_support::{AttachOptions, Disk, PATIENCE, times};

use super::load::{DISK_BYTES, run, setup};
use super::{assert_goes_on, await_restarts, is_qsd, serving, strike};
use crate::crash::random;

/// Kills in each test, unless the environment has another number.
fn kills() -> u64 {
    times("SEALDISK_SUPERVISE_KILLS", 8).into()
}

/// Nothing is lost or done twice, there is no error, and the connection stays.
fn are_not_noticed(setup: &Setup, arguments: &'static [&'static str]) {
    if is_qsd() {
        return;
    }
    let mut rng = random();
    let disk = Disk::new(DISK_BYTES);
    let daemon = disk.attach(&AttachOptions {
        arguments,
        ..AttachOptions::default()
    });
    let mut frontend = daemon.connect_with(setup);
    let done = run(&mut frontend, rng.next(), || {
        for _ in 0..kills() {
            std::thread::sleep(Duration::from_millis(rng.within(1..400)));
            strike(&daemon);
        }
    });
    assert_goes_on(&mut frontend, 1);
    await_restarts(&disk, kills());
    eprintln!(
        "{} kills, {} requests, the longest took {:?}",
        kills(),
        done.requests,
        done.longest
    );
    assert!(done.requests > kills(), "no load to speak of");
    drop(frontend);
    daemon.stop();
}

#[test]
fn kills_under_load_are_not_noticed() {
    are_not_noticed(&setup(), &[]);
}

#[test]
fn kills_are_not_noticed_with_event_indices_and_indirect_descriptors() {
    let mut setup = setup().with(feature::EVENT_IDX);
    setup.indirect = true;
    are_not_noticed(&setup, &[]);
}

#[test]
fn kills_are_not_noticed_without_write_back() {
    are_not_noticed(&setup().without(feature::FLUSH), &[]);
}

/// Requests complete out of order where some have to wait for storage and some have not.
#[test]
fn kills_are_not_noticed_where_a_limit_holds_requests_back() {
    are_not_noticed(&setup(), &["--iops", "3000", "--bandwidth", "20MiB"]);
}

/// One death is followed by the next at once, before its successor serves or right after.
#[test]
fn deaths_within_a_second_are_not_noticed_either() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(DISK_BYTES);
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect_with(&setup());
    let done = run(&mut frontend, 3, || {
        std::thread::sleep(Duration::from_millis(100));
        strike(&daemon);
        strike(&daemon);
        std::thread::sleep(Duration::from_millis(50));
        strike(&daemon);
    });
    assert!(done.requests > 0);
    await_restarts(&disk, 3);
    assert_goes_on(&mut frontend, 2);
}

/// `disk show` and the events tell how often, and why.
#[test]
fn a_restart_is_told() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(DISK_BYTES);
    let daemon = disk.attach(&AttachOptions::default());
    assert_eq!(serving(&disk)["restarts"], 0);
    strike(&daemon);
    await_restarts(&disk, 1);
    let serving = serving(&disk);
    let reason = serving["lastRestart"]["reason"].as_str().unwrap();
    assert!(reason.contains("SIGKILL"), "{serving}");
    daemon.connect();
    let events = disk.text("disk events disk");
    let event = events
        .lines()
        .find(|line| line.contains("DataPlaneRestarted"));
    let event: serde_json::Value = serde_json::from_str(event.unwrap()).unwrap();
    assert_eq!(event["reason"]["code"], "DataPlaneDied", "{event}");
    let message = event["reason"]["message"].as_str().unwrap();
    assert!(
        message.contains("SIGKILL") && message.ends_with("restarts: 1"),
        "{event}"
    );
    let log = daemon.log();
    assert!(log.contains("is served again"), "{log}");
    // The record is written beside, so that a log that cannot be written holds nobody up.
    let end = Instant::now() + PATIENCE;
    while !disk.text("audit list -o json").contains("DataPlaneDied") {
        assert!(Instant::now() < end, "the hand-over is not on record");
        std::thread::sleep(Duration::from_millis(20));
    }
}
