//! A file system that is full keeps nobody from taking a key away, and stops no disk.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use test_support::small_fs::{Moved, SmallFs};
use test_support::{Customer, PATIENCE, kill};

use super::{FAIL, MIB};

fn statuses(customer: &Customer) -> (Option<i32>, Vec<Value>) {
    let mut status = customer.disk.command(&["audit", "status", "-o", "json"]);
    let output = status.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let views = text.lines().map(|line| serde_json::from_str(line).unwrap());
    (output.status.code(), views.collect())
}

#[test]
fn a_key_is_disabled_and_a_disk_goes_on_though_the_file_system_is_full() {
    let Some(fs) = SmallFs::mount("tmpfs") else {
        return;
    };
    let customer = Customer::new(4 * MIB);
    let moved = Moved::to(&fs, customer.disk.state());
    let daemon = customer.attach(FAIL);
    let (code, views) = statuses(&customer);
    assert_eq!(code, Some(3), "{views:?}");
    assert!(views.iter().all(|log| log["low"] == true));
    let reserved = |views: &[Value]| {
        let of = |log: &&Value| log["log"] == "vault/customer";
        views.iter().find(of).unwrap()["reserveBytes"].as_u64()
    };
    assert_eq!(reserved(&views), Some(4 << 20));

    let databases = ["audit.db", "vaults/customer/vault.db"];
    let ballast = fs.fill();
    for database in databases {
        // No room is left in the write-ahead logs either.
        let db = rusqlite::Connection::open(customer.disk.state().join(database)).unwrap();
        let _ = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    }
    drop(ballast);
    let ballast = fs.fill();
    let granted = || customer.show()["keyAccess"]["lastGranted"].clone();
    let before = granted();
    let end = Instant::now() + PATIENCE;
    while granted() == before {
        assert!(Instant::now() < end, "{}", customer.show());
        sleep(Duration::from_millis(50));
    }
    assert_eq!(customer.show()["keyAccess"]["state"], "Active");
    let create = ["keyvault", "key", "create", "k", "--vault-name", "customer"];
    let refused = customer.disk.command(&create).output().unwrap();
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("no space left for the audit log"), "{error}");

    // That another data plane has the key waits for no room, nor does anything wait for that.
    let dead = daemon.data_plane();
    kill(dead);
    let end = Instant::now() + PATIENCE;
    while !daemon.log().contains("is served again") {
        assert!(Instant::now() < end, "{}", daemon.log());
        sleep(Duration::from_millis(5));
    }
    customer.enable(false);
    let access = customer.wait_stopped();
    assert_eq!(access["reason"]["code"], "KeyDisabled", "{access}");
    let (_, views) = statuses(&customer);
    assert!(
        views.iter().any(|log| log["reserveBytes"] == 0),
        "{views:?}"
    );
    customer.enable(true);
    customer.wait_served();

    drop(ballast);
    let (_, views) = statuses(&customer);
    assert_eq!(reserved(&views), Some(4 << 20), "it is made again");
    customer.ok(&["audit", "verify"]);
    let log = customer.text(&["audit", "list", "--installation", "-o", "json"]);
    assert!(
        log.contains("DekDestroy") && log.contains("DekRestore") && log.contains("DataPlaneDied"),
        "{log}"
    );
    let said = daemon.log();
    assert!(!said.contains("not yet in the audit log"), "{said}");
    assert!(said.contains("left for the audit logs"), "{said}");
    drop(daemon);
    drop(moved);
}
