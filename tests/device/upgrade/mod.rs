//! Upgrades of the program under a guest that has requests in flight: it notices a stall and nothing else. A program that
//! does not work is found out, and the one that served goes on.

mod attach;
mod faults;
mod impostor;
mod kills;
mod setup;
mod upgrades;

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use test_support::{Daemon, Disk, PATIENCE, expect_success, one_line, text};

use super::supervise::{MIB_8, assert_goes_on, serving};

/// `sealdisk upgrade disk`, to the program at the path or to the one that the disk was attached with.
fn command(disk: &Disk, binary: Option<&Path>) -> Command {
    let mut command = disk.command("upgrade disk -o json");
    if let Some(binary) = binary {
        command.args(["--binary", text(binary)]);
    }
    command
}

/// What it says of an upgrade that succeeds.
fn upgrade(disk: &Disk, binary: Option<&Path>) -> Value {
    let said = expect_success(&mut command(disk, binary)).stdout;
    let said: Value = serde_json::from_slice(&said).unwrap();
    said[0].clone()
}

/// Why an upgrade does not succeed.
fn refusal(disk: &Disk, binary: Option<&Path>) -> String {
    refused(&command(disk, binary).output().unwrap())
}

fn refused(output: &Output) -> String {
    let said: Value = serde_json::from_str(&one_line(output)).unwrap();
    assert_eq!(said["code"], "NotUpgraded", "{said}");
    let message = said["message"].as_str().unwrap();
    let why = message.strip_prefix("the disk is not upgraded, and goes on as it was: ");
    why.unwrap_or_else(|| panic!("{message}")).to_owned()
}

/// Waits until there is one data plane and one launcher, as before: nothing is left of those that have gone.
fn await_only_one(daemon: &Daemon) {
    let end = Instant::now() + PATIENCE;
    loop {
        let processes = daemon.processes();
        if processes.len() == 3 {
            return;
        }
        assert!(Instant::now() < end, "{processes:?}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}
