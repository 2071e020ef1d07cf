//! The records of what became of a DEK, and that a log which cannot be written keeps no key alive.

use std::fs;
use std::time::{Duration, Instant};

use test_support::{Customer, PATIENCE};
use vault::audit::{AuditError, Entry};

use super::{FAIL, MIB};

fn entries(customer: &Customer) -> Vec<Entry> {
    let installation = customer.disk.installation();
    let log = installation.audit_log().unwrap();
    let mut entries = Vec::new();
    log.read(|chain, db| {
        chain.for_each(db, 0, |entry| {
            entries.push(entry);
            Ok::<(), AuditError>(())
        })
    })
    .unwrap();
    entries.retain(|entry| entry.event.operation.starts_with("Dek"));
    entries
}

fn operations(customer: &Customer) -> Vec<String> {
    let entries = entries(customer).into_iter();
    entries.map(|entry| entry.event.operation).collect()
}

#[test]
fn the_life_of_a_dek_is_on_record() {
    let customer = Customer::new(4 * MIB);
    let mut daemon = customer.attach(FAIL);
    customer.enable(false);
    let destroyed = customer.wait_stopped();
    customer.enable(true);
    customer.wait_served();
    assert!(daemon.terminate().success());

    let entries = entries(&customer);
    let operations: Vec<&str> = entries.iter().map(|e| e.event.operation.as_str()).collect();
    let expected = ["DekHandOver", "DekDestroy", "DekRestore", "DekDestroy"];
    assert_eq!(operations, expected);
    let version = destroyed["keyUrl"].as_str().unwrap();
    for entry in &entries {
        let key = format!(
            "{}/{}",
            entry.event.key.as_deref().unwrap(),
            entry.event.version.as_deref().unwrap()
        );
        assert_eq!(key, version);
        assert_eq!(entry.event.disk.as_deref(), Some("disk"));
        assert!(
            entry.event.origin.starts_with("local, uid "),
            "{}",
            entry.event.origin
        );
        assert_eq!(entry.event.code, None);
    }
    let why = |n: usize| entries[n].event.detail.as_deref().unwrap();
    assert!(why(1).contains("KeyDisabled"), "{}", why(1));
    assert!(why(3).contains("Detached"), "{}", why(3));
    customer.ok(&["audit", "verify"]);
}

#[test]
fn a_log_that_cannot_be_written_keeps_no_key_alive_and_gives_none_back() {
    let customer = Customer::new(4 * MIB);
    let daemon = customer.attach(FAIL);
    let (key, away) = (
        customer.disk.state().join("audit.key"),
        customer.disk.state().join("away.key"),
    );
    fs::rename(&key, &away).unwrap();
    customer.enable(false);
    customer.wait_stopped();
    assert!(daemon.log().contains("not yet in the audit log"));
    customer.enable(true);
    let end = Instant::now() + PATIENCE;
    while customer.show()["keyAccess"]["lastFailure"]["code"] != "AuditLog" {
        assert!(Instant::now() < end, "{}", customer.show());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(customer.show()["keyAccess"]["dek"], "Destroyed");

    // What was owed to the log comes into it, and then the disk comes back.
    fs::rename(&away, &key).unwrap();
    customer.wait_served();
    let end = Instant::now() + PATIENCE;
    loop {
        let mut operations = operations(&customer);
        operations.sort_unstable();
        if operations == ["DekDestroy", "DekHandOver", "DekRestore"] {
            break;
        }
        assert!(Instant::now() < end, "{operations:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(daemon);

    fs::rename(&key, &away).unwrap();
    let refused = customer
        .disk
        .command(&["attach", "disk", "--socket-path", "/dev/shm/never-bound"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("the audit log"), "{error}");
}
