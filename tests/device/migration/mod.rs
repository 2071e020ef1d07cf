//! Migration of a guest between two attaches of one disk: the same guest goes on at another back-end.

mod faults;
mod given_up;
mod hosts;
mod lock_log;
mod logged;
mod moves;
mod others;
mod precopy;
mod refusals;

use std::time::{Duration, Instant};

use serde_json::Value;
use test_support::frontend::device::Setup;
use test_support::{Daemon, Disk, PATIENCE, times};

use super::crash::load;
use super::supervise::{MIB_8, is_qsd};

/// How many migrations a test has, unless the environment has another number.
fn migrations() -> u32 {
    times("SEALDISK_MIGRATIONS", 4)
}

/// An attach that waits for the disk.
fn incoming(disk: &Disk) -> Daemon {
    disk.attach_with("disk", &["--incoming"])
}

/// A frontend under load, with an in-flight region.
fn setup(round: u32) -> Setup {
    load::setup(round).with_inflight()
}

/// What `disk show` says.
fn shown(disk: &Disk) -> Value {
    disk.json("disk show disk")
}

/// Waits until it holds for `disk show`.
fn await_shown(disk: &Disk, what: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let shown = shown(disk);
        if what(&shown) {
            return shown;
        }
        assert!(Instant::now() < end, "{shown}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
