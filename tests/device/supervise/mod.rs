//! Deaths of the data plane: another one goes on with the same connection, and the frontend does not notice.

pub mod connection;
mod kills;
pub mod load;
mod loops;
pub mod setup;
mod stalls;

use std::time::{Duration, Instant};

use serde_json::Value;
use test_support::frontend::device::Frontend;
use test_support::{Backend, Daemon, Disk, PATIENCE, data_plane_of, kill, stat};

/// Bytes of a small disk.
pub const MIB_8: u64 = 8 * super::MIB;

/// Whether it is another program that serves, of which none of this is said.
pub fn is_qsd() -> bool {
    Backend::chosen() == Backend::Qsd
}

/// Whether a data plane is past its start: at that it is two processes for a moment, of which one tells the id of the
/// other on a pipe and ends. The death of that one is nobody's after it has told.
fn has_begun(pid: u32) -> bool {
    match std::fs::read_link(format!("/proc/{pid}/fd/1")) {
        Ok(standard_output) => !standard_output.to_string_lossy().starts_with("pipe:"),
        // Who is not root cannot look at it.
        Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
    }
}

/// Waits until there is another data plane than `dead`.
pub fn next_data_plane(daemon: &Daemon, dead: u32) -> u32 {
    let end = Instant::now() + PATIENCE;
    loop {
        let found = data_plane_of(daemon.pid());
        if let Some(next) = found.filter(|pid| *pid != dead && has_begun(*pid)) {
            return next;
        }
        assert!(
            Instant::now() < end,
            "no other data plane is started\n{}",
            daemon.log()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lets the data plane come back from the last message, whose answer is here already: between the two it may
/// not die without ending the connection. Its first thread, which takes messages, sleeps when it is back.
pub fn settle(data_plane: u32) {
    std::thread::sleep(Duration::from_millis(50));
    let end = Instant::now() + PATIENCE;
    while stat(data_plane).is_some_and(|fields| fields[0] != "S") {
        assert!(Instant::now() < end, "the data plane does not come to rest");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills the data plane, and waits for the next one to begin.
fn strike(daemon: &Daemon) -> u32 {
    let dead = next_data_plane(daemon, 0);
    settle(dead);
    kill(dead);
    next_data_plane(daemon, dead)
}

/// The connection is the same, and every queue serves.
pub fn assert_goes_on(frontend: &mut Frontend, seed: u64) {
    frontend.barrier().expect("the connection is still there");
    for queue in &mut frontend.queues {
        queue.assert_serves(0, seed);
    }
}

/// What `disk show` says of the process.
pub fn serving(disk: &Disk) -> Value {
    disk.json("disk show disk")["serving"].take()
}

/// Waits until so many data planes have died.
fn await_restarts(disk: &Disk, count: u64) {
    let end = Instant::now() + PATIENCE;
    while serving(disk)["restarts"] != count {
        assert!(Instant::now() < end, "{}", serving(disk));
        std::thread::sleep(Duration::from_millis(10));
    }
}
