//! kill -9 of the data plane under load.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use test_support::frontend::client::Status;
use test_support::frontend::device::{Setup, feature};
use test_support::{AttachOptions, Disk, PATIENCE, await_end, times};

use super::load::{DISK_BYTES, run, setup};
use super::{MIB_8, assert_goes_on, await_restarts, is_qsd, serving, strike};
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

/// The one data file somewhere below a directory.
fn data_below(directory: &Path) -> PathBuf {
    let below = |path: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let mut paths = below(directory);
    while let Some(path) = paths.pop() {
        match path
            .extension()
            .is_some_and(|extension| extension == "data")
        {
            true => return path,
            false => paths.extend(below(&path)),
        }
    }
    panic!("no data file in {}", directory.display());
}

/// A data plane that dies while it copies into a file that is memory, through the caches of the processor or past
/// them: the next one finishes that first. The page is taken away, so that it dies at the first byte.
#[test]
fn a_copy_that_a_data_plane_died_over_is_finished_by_the_next() {
    if is_qsd() {
        return;
    }
    for size in [MIB_8, 12 * MIB_8] {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let data_dir = ["--data-dir", directory.path().to_str().unwrap()];
        let disk = Disk::with(size, &data_dir);
        let daemon = disk.attach(&AttachOptions::default());
        let mut frontend = daemon.connect();
        let queue = &mut frontend.queues[0];
        queue.write(0, &[1; 4096]).unwrap();
        let dead = daemon.data_plane();
        let data = File::options()
            .write(true)
            .open(data_below(directory.path()))
            .unwrap();
        let len = data.metadata().unwrap().len();
        data.set_len(0).unwrap();
        let pending = queue.begin_write(0, &[2; 4096]);
        await_end(dead);
        data.set_len(len).unwrap();
        assert_eq!(queue.complete(pending).status, Status::Ok);
        assert!(queue.read(0, 4096) == Ok(vec![2; 4096]));
        let log = daemon.log();
        assert!(log.contains("SIGBUS"), "{log}");
    }
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
