//! A catalog that is lost and made again while a disk is served: what is changed from then on only the new one knows.

use std::fs;
use std::thread;
use std::time::Duration;

use test_support::Customer;

use super::{FAIL, MIB};

fn make_catalog_again(customer: &Customer) {
    for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        let _ = fs::remove_file(customer.state().join(name));
    }
    customer.ok("catalog rebuild --all-directories-named");
}

#[test]
fn an_identity_that_is_removed_from_a_catalog_made_again_stops_its_disk() {
    let customer = Customer::new(4 * MIB);
    let daemon = customer.attach(FAIL);
    customer.wait_served();
    make_catalog_again(&customer);
    customer.ok("disk-encryption-set identity remove set --yes");
    customer.wait_stopped();
    customer.ok("disk-encryption-set identity assign set");
    customer.grant();
    customer.wait_served();
    daemon.connect().queues[0].assert_serves(0, 1);
}

#[test]
fn a_set_that_only_a_catalog_made_again_knows_keeps_its_disk() {
    let customer = Customer::new(4 * MIB);
    let daemon = customer.attach(FAIL);
    customer.wait_served();
    make_catalog_again(&customer);
    let url = Customer::key_url();
    customer.ok(&["disk-encryption-set", "create", "other", "--key-url", &url]);
    let other = customer.json("disk-encryption-set show other");
    customer.grant_to(other["identity"]["principalId"].as_str().unwrap());
    customer.ok("disk update disk --disk-encryption-set other");
    // Some checks.
    thread::sleep(Duration::from_secs(3));
    customer.wait_served();
    assert!(!customer.events().contains(&"KeyRevoked".to_owned()));
    daemon.connect().queues[0].assert_serves(0, 1);
}
