//! Double encryption on a running disk: either key stops it, and it moves into and out of it under load.

use std::thread;
use std::time::{Duration, Instant};

use test_support::{AttachOptions, Customer, PATIENCE};

use super::load::Load;
use super::{FAIL, MIB, PAUSE};

const TWICE: &str = "EncryptionAtRestWithPlatformAndCustomerKeys";

/// A second set of the customer's key, whose disks are encrypted twice.
fn create_twice(customer: &Customer) {
    let url = Customer::key_url();
    customer.ok(&format!(
        "disk-encryption-set create twice --key-url {url} --encryption-type {TWICE}"
    ));
    let set = customer.json("disk-encryption-set show twice");
    customer.grant_to(set["identity"]["principalId"].as_str().unwrap());
}

fn enable_platform(customer: &Customer, enabled: bool) {
    customer.ok(&format!(
        "keyvault key set-attributes platform-key --vault-name platform --enabled {enabled}"
    ));
}

fn kind(customer: &Customer) -> String {
    customer.show()["encryption"]["type"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn either_key_stops_a_running_disk_and_brings_it_back() {
    for how in [FAIL, PAUSE] {
        let customer = Customer::new(8 * MIB);
        create_twice(&customer);
        customer.ok("disk update disk --disk-encryption-set twice");
        assert_eq!(kind(&customer), TWICE);
        let daemon = customer.attach(how);
        let mut frontend = daemon.connect();
        let data = vec![7; 65536];
        frontend.queues[0].write(0, &data).unwrap();
        for platform in [true, false] {
            let enable = |enabled| match platform {
                true => enable_platform(&customer, enabled),
                false => customer.enable(enabled),
            };
            enable(false);
            let access = customer.wait_stopped();
            let reason = access["reason"].to_string();
            let name = if platform {
                "platform-key"
            } else {
                Customer::KEY
            };
            assert!(reason.contains(name), "{reason}");
            enable(true);
            customer.wait_served();
            assert_eq!(frontend.queues[1].read(0, data.len()), Ok(data.clone()));
        }
        drop(frontend);
        daemon.stop();
    }
}

/// That nothing is decided about one of the keys hides nothing that is decided about the other.
#[test]
fn a_vault_that_is_away_hides_no_refusal_of_another() {
    let customer = Customer::new(8 * MIB);
    create_twice(&customer);
    customer.ok("disk update disk --disk-encryption-set twice");
    let daemon = customer.attach(FAIL);
    let mut frontend = daemon.connect();
    customer.hide_vault();
    customer.wait_for("KeyUnreachable", "Held");
    assert_eq!(frontend.queues[0].write(0, &[7; 4096]), Ok(()));
    enable_platform(&customer, false);
    let access = customer.wait_stopped();
    let reason = access["reason"].to_string();
    assert!(reason.contains("platform-key"), "{reason}");
    enable_platform(&customer, true);
    customer.show_vault();
    customer.wait_served();
    drop(frontend);
    daemon.stop();
}

/// As above of a layer beneath, whose key is another one's: the top layer's vault is away.
#[test]
fn a_vault_that_is_away_hides_no_refusal_of_a_lower_layers_key() {
    let customer = Customer::new(8 * MIB);
    customer.ok("disk create golden --size 8MiB");
    customer.ok("snapshot create golden-s --source golden");
    customer.ok(&format!(
        "disk create top --source golden-s --disk-encryption-set {}",
        Customer::SET
    ));
    let daemon = customer.disk.attach(&AttachOptions {
        disk: Some("top"),
        arguments: FAIL,
        ..AttachOptions::default()
    });
    let wait_for = |state: &str| {
        let end = Instant::now() + PATIENCE;
        loop {
            let access = customer.json("disk show top")["keyAccess"].take();
            if access["state"] == state {
                return access;
            }
            assert!(Instant::now() < end, "not {state} but {access}");
            thread::sleep(Duration::from_millis(20));
        }
    };
    customer.hide_vault();
    wait_for("KeyUnreachable");
    enable_platform(&customer, false);
    let access = wait_for("KeyRevoked");
    let reason = access["reason"].to_string();
    assert!(reason.contains("platform-key"), "{reason}");
    enable_platform(&customer, true);
    customer.show_vault();
    wait_for("Active");
    daemon.stop();
}

/// The guest goes on, whatever its data is encrypted with.
#[test]
fn an_attached_disk_moves_into_it_and_out_of_it_under_load() {
    let customer = Customer::new(8 * MIB);
    create_twice(&customer);
    let daemon = customer.attach(FAIL);
    let mut frontend = daemon.connect();
    let mut load = Load::new(&mut frontend.queues[0], 0, 5);
    for (set, wanted) in [
        ("twice", TWICE),
        (Customer::SET, "EncryptionAtRestWithCustomerKey"),
    ] {
        customer.ok(&format!("disk update disk --disk-encryption-set {set}"));
        let end = Instant::now() + PATIENCE;
        while customer.show()["job"] != serde_json::Value::Null {
            assert!(Instant::now() < end, "the data is not copied");
            for _ in 0..50 {
                load.turn(&mut frontend.queues[0]);
                thread::sleep(Duration::from_micros(200));
            }
        }
        assert_eq!(kind(&customer), wanted);
    }
    load.finish(&mut frontend.queues[0]);
    load.verify(&mut frontend.queues[0]);
    drop(frontend);
    daemon.stop();
    customer.disk.is_clean("disk");
}
