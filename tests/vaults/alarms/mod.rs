//! Alarms of attached disks and of served vaults: what is told, to whom, how often, and that telling holds nothing up.

mod attached;
mod told;
mod watched;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use test_support::alarms::{alarms, status};
use test_support::{Customer, Host, PATIENCE};

const MIB: u64 = 1 << 20;

/// A customer whose host looks for alarms each second, and to which it does not matter how full the disk of the tests
/// is.
fn customer() -> Customer {
    let customer = Customer::new(4 * MIB);
    customer.ok("alarm update --look-interval 1 --space-warning 0 --space-critical 0");
    customer
}

/// A program that adds what it is told to a file, and that file.
fn page(host: &Host, name: &str) -> (String, PathBuf) {
    let out = host.path(&format!("{name}.out"));
    (
        script(host, name, &format!("cat >> {}", out.display())),
        out,
    )
}

/// A program with that body.
fn script(host: &Host, name: &str, body: &str) -> String {
    let path = host.path(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    host.file(name)
}

/// The events that a program was told.
fn told(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out).unwrap_or_default();
    let whole = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    whole
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// How often a program was told of something.
fn count(out: &Path, is_it: impl Fn(&Value) -> bool) -> usize {
    told(out).iter().filter(|event| is_it(event)).count()
}

/// Waits until something holds.
fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether an event is of an alarm with that code.
fn is_alarm(event: &Value, kind: &str, code: &str) -> bool {
    event["event"] == kind && event["alarm"]["code"] == code
}
