//! Tokens that refuse to destroy a key, and tokens that hang: neither takes a vault down.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use test_support::Disk;

use super::token::{KEY, LABEL, Token, TokenOwner, VAULT};

/// A customer whose vault is in a token behind the library of `faulty.c`.
fn customer() -> (TokenOwner, tempfile::TempDir) {
    let faults = tempfile::tempdir().unwrap();
    let module: PathBuf = faults.path().join("faulty.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vaults/hsm/faulty.c");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-w", "-o"])
        .arg(&module)
        .args([source, "-ldl"])
        .status()
        .unwrap();
    assert!(built.success());
    let token = Token::new();
    let mut disk = Disk::new(8 << 20);
    disk.set_env("SOFTHSM2_CONF", token.conf().to_str().unwrap());
    disk.set_env("INNER_MODULE", Token::module().to_str().unwrap());
    disk.set_env("FAULTS", faults.path().to_str().unwrap());
    let customer = TokenOwner::of(token, disk);
    customer.ok(&format!(
        "keyvault create {VAULT} --hsm-module {} --hsm-token {} --hsm-pin-file {}",
        module.display(),
        LABEL.replace(' ', "\u{a0}"),
        customer.token.pin_file().display()
    ));
    (customer.with_disk_under_the_key(), faults)
}

/// A key that is deleted, and whose retention time is over.
fn expired_key(customer: &TokenOwner) {
    let old = format!("old --vault-name {VAULT}");
    customer.ok(&format!("keyvault key create {old} --size 2048"));
    customer.ok(&format!("keyvault key delete {old}"));
    let db = customer
        .disk
        .state()
        .join("vaults")
        .join(VAULT)
        .join("vault.db");
    let db = rusqlite::Connection::open(db).unwrap();
    let past = "UPDATE deleted_keys SET purge_at = '2026-01-01T00:00:00Z'";
    assert_eq!(db.execute(past, []).unwrap(), 1);
}

fn purges(customer: &TokenOwner) -> Vec<Value> {
    let log = customer.text(&format!("audit list --vault {VAULT} -o json"));
    let records = log.lines().map(|line| serde_json::from_str(line).unwrap());
    records
        .filter(|record: &Value| record["operation"] == "KeyPurge")
        .collect()
}

fn unwraps(customer: &TokenOwner) {
    customer.ok("disk decrypt disk --output-file /dev/null");
}

#[test]
fn a_key_that_cannot_be_destroyed_stops_nothing_and_is_tried_again() {
    let (customer, faults) = customer();
    expired_key(&customer);
    let refuse = faults.path().join("refuse-destroy");
    fs::write(&refuse, "").unwrap();

    unwraps(&customer);
    let key = format!("{KEY} --vault-name {VAULT}");
    customer.ok(&format!(
        "keyvault key set-attributes {key} --enabled false"
    ));
    customer.refused_with("KeyDisabled", "disk decrypt disk --output-file /dev/null");
    customer.ok(&format!("keyvault key set-attributes {key} --enabled true"));
    unwraps(&customer);

    // It was tried once, is on record, and is left alone for a while.
    let tried = purges(&customer);
    assert_eq!(tried.len(), 1, "{tried:?}");
    assert_eq!(tried[0]["outcome"], "refused");
    let detail = tried[0]["detail"].as_str().unwrap();
    assert!(detail.contains("FunctionRejected"), "{detail}");

    // Nobody can have it back, and its name is not free yet.
    let old = format!("old --vault-name {VAULT}");
    let listed = customer.json(&format!("keyvault key list-deleted --vault-name {VAULT}"));
    assert_eq!(listed, serde_json::json!([]));
    customer.refused_with("KeyNotFound", &format!("keyvault key recover {old}"));
    let create = format!("keyvault key create {old} --size 2048");
    customer.refused_with("ObjectIsBeingDeleted", &create);

    let due = customer.refused_with("DueFailed", "keyvault run-due");
    assert!(due.contains("'old' was not purged"), "{due}");
    fs::remove_file(refuse).unwrap();
    assert_eq!(customer.token.objects().len(), 2);
    customer.ok("keyvault run-due");
    assert_eq!(customer.token.objects().len(), 1);
    assert_eq!(purges(&customer).pop().unwrap()["outcome"], "allowed");
    customer.ok(&create);
}

#[test]
fn a_token_that_hangs_is_unreachable_and_holds_nothing_else() {
    let (customer, faults) = customer();
    expired_key(&customer);
    let hang = faults.path().join("hang-destroy");
    fs::write(&hang, "").unwrap();
    // What needs no token, and what does not need this key, is done meanwhile.
    let key = format!("{KEY} --vault-name {VAULT}");
    customer.ok(&format!(
        "keyvault key set-attributes {key} --enabled false"
    ));
    customer.ok(&format!("keyvault key set-attributes {key} --enabled true"));
    unwraps(&customer);
    fs::remove_file(hang).unwrap();

    fs::write(faults.path().join("hang-find"), "").unwrap();
    let why = customer.refused_with(
        "VaultUnreachable",
        "disk decrypt disk --output-file /dev/null",
    );
    assert!(why.contains("has not answered for 5 s"), "{why}");
    customer.ok(&format!(
        "keyvault key set-attributes {key} --enabled false"
    ));
    fs::remove_file(faults.path().join("hang-find")).unwrap();
    customer.ok(&format!("keyvault key set-attributes {key} --enabled true"));
    unwraps(&customer);
    customer.ok("keyvault run-due");
    assert_eq!(customer.token.objects().len(), 1);
    // Who uses which key version is told by the vault, with the disk.
    let log = customer.text(&format!("audit list --vault {VAULT} --last 20 -o json"));
    let unwrap = log
        .lines()
        .rfind(|line| line.contains("KeyUnwrap"))
        .unwrap();
    assert!(unwrap.contains("\"disk\":\"disk\""), "{unwrap}");
    assert!(unwrap.contains("\"detail\":\"layer "), "{unwrap}");
}
