//! Data planes that are stopped or frozen as a whole, so that they can tell nobody.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use test_support::{AttachOptions, Daemon, Disk, PATIENCE, kill, stop};

use super::{MIB_8, assert_goes_on, is_qsd, next_data_plane, serving, settle};

/// Waits until the disk is shown to be stalled, or to go on.
fn await_stall(disk: &Disk, daemon: &Daemon, is_stalled: bool) {
    let end = Instant::now() + PATIENCE;
    while serving(disk)["stall"].is_null() == is_stalled {
        assert!(Instant::now() < end, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn alarms(disk: &Disk) -> String {
    // Its exit status is that of the alarms.
    String::from_utf8(disk.run("status -o json").stdout).unwrap()
}

/// One that is stopped while it has nothing to do takes no request, so none is in flight.
#[test]
fn a_data_plane_that_is_stopped_is_told_of() {
    if is_qsd() {
        return;
    }
    let disk = Disk::new(MIB_8);
    disk.ok("alarm update --stall-time 1s --look-interval 1s");
    let daemon = disk.attach(&AttachOptions::default());
    let mut frontend = daemon.connect();
    let stopped = next_data_plane(&daemon, 0);
    settle(stopped);
    stop(stopped);
    await_stall(&disk, &daemon, true);
    assert_eq!(serving(&disk)["stall"]["isSilent"], true);
    let found = alarms(&disk);
    assert!(found.contains("RequestsStalled"), "{found}");
    let top: Value = serde_json::from_str(&disk.text("top -b -n 1 -o json")).unwrap();
    assert_eq!(top["disks"][0]["standing"], "stalled", "{top}");
    let end = Instant::now() + PATIENCE;
    while !disk.text("disk events disk").contains("RequestsStalled") {
        assert!(Instant::now() < end, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(100));
    }

    let pid = Pid::from_raw(stopped.cast_signed()).unwrap();
    kill_process(pid, Signal::CONT).unwrap();
    await_stall(&disk, &daemon, false);
    let found = alarms(&disk);
    assert!(!found.contains("RequestsStalled"), "{found}");
    assert_goes_on(&mut frontend, 1);

    // What the alarm says to do helps.
    stop(stopped);
    kill(stopped);
    next_data_plane(&daemon, stopped);
    assert_goes_on(&mut frontend, 2);
    drop(frontend);
    daemon.stop();
}
