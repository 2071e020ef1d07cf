//! Disks that run while their vault is restored, or made anew, and does not know what it knew.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use test_support::{Customer, Host, PATIENCE, text};

use super::backups::{bring_disks, create, lose_state, with_identity};
use super::support::Lines;

const OFTEN: &[&str] = &["--key-check-interval", "1s", "--on-revoke", "error"];

/// Waits until the last check of the disk's key has failed with that code; what `disk show` says then.
fn wait_failed(customer: &Customer, code: &str) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let access = customer.show()["keyAccess"].take();
        if access["lastFailure"]["code"] == code {
            return access;
        }
        assert!(Instant::now() < end, "no {code} but {access}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// That the disk is served for its grace period.
fn outlives(customer: &Customer) {
    let access = wait_failed(customer, "VaultIncomplete");
    assert_eq!(access["state"], "KeyUnreachable", "{access}");
    assert_eq!(access["dek"], "Held", "{access}");
    assert!(access["until"].is_string(), "{access}");
}

/// Its DEK is nowhere but in its data plane: no vault has the key version that wraps it.
#[test]
fn a_disk_under_a_key_that_the_backup_does_not_have_is_served_for_its_grace_period() {
    let customer = Customer::new(4 << 20);
    let host: &Host = &customer;
    let first = customer.wrapping_key();
    let file = create(host, "--with-master-key");
    customer.create_key();
    customer.ok(&format!(
        "disk-encryption-set update {} --enable-auto-key-rotation true",
        Customer::SET
    ));
    assert_ne!(customer.wrapping_key(), first);
    let _daemon = customer.attach(OFTEN);
    customer.wait_served();

    lose_state(host);
    let restored = host.line(&with_identity(host, "restore", &file));
    assert!(restored.status.success(), "{restored:?}");
    bring_disks(host);
    outlives(&customer);
    // Whoever says that all disks are known hears that the vault lacks a key, and still decides nothing.
    let rebuilt = host.line("catalog rebuild --all-directories-named");
    assert!(rebuilt.status.success(), "{rebuilt:?}");
    let notes = String::from_utf8(rebuilt.stderr).unwrap();
    assert!(notes.contains("does not have"), "{notes}");
    assert!(notes.contains("the disk 'disk' needs"), "{notes}");
    outlives(&customer);
    assert!(!customer.events().contains(&"KeyRevoked".to_owned()));
    // The word of whoever knows that the key is gone decides.
    customer.ok(&format!("keyvault update {} --complete", Customer::VAULT));
    let access = customer.wait_stopped();
    assert_eq!(access["reason"]["code"], "KeyNotFound", "{access}");
}

/// As the runbook has it, from the loss of the vault until it has its key and its policy again.
#[test]
fn a_disk_outlives_a_vault_that_is_made_in_the_place_of_its_lost_one() {
    let customer = Customer::new(4 << 20);
    let (backup, master) = (customer.path("key.backup"), customer.path("kept.key"));
    let vault = Customer::VAULT;
    customer.ok(&format!(
        "keyvault key backup {} --vault-name {vault} --file {}",
        Customer::KEY,
        text(&backup)
    ));
    fs::copy(customer.vault().join("master.key"), &master).unwrap();
    let identity = customer.identity();
    let _daemon = customer.attach(OFTEN);
    customer.wait_served();

    fs::remove_dir_all(customer.vault()).unwrap();
    wait_failed(&customer, "VaultNotFound");
    customer.ok(&format!("keyvault delete {vault} --force --yes"));
    customer.ok(&format!(
        "keyvault create {vault} --master-key-file {}",
        text(&master)
    ));
    outlives(&customer);
    customer.ok(&format!(
        "keyvault key restore --vault-name {vault} --file {}",
        text(&backup)
    ));
    outlives(&customer);
    customer.grant_to(&identity);
    customer.wait_served();
    assert!(!customer.events().contains(&"KeyRevoked".to_owned()));
    // It lacks nothing: what it does not know is refused from now on.
    customer.ok("catalog rebuild --all-directories-named");
    customer.revoke_policy();
    let access = customer.wait_stopped();
    assert_eq!(access["reason"]["code"], "Forbidden", "{access}");
}
