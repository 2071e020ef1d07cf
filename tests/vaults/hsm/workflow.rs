//! An HSM-backed disk encryption set from its making to its rotation, and what goes wrong with a
//! token.

use std::fs;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use test_support::frontend::client::Status;
use test_support::{AttachOptions, PATIENCE, frontend};

use super::token::{KEY, LABEL, PIN, SET, TokenOwner, VAULT};

const GUARDED: AttachOptions = AttachOptions {
    disk: None,
    read_only: false,
    queues: None,
    serial: None,
    arguments: &["--key-check-interval", "1s", "--on-revoke", "error"],
};

#[test]
fn create_attach_revoke_rotate() {
    let customer = TokenOwner::new();
    let vault = customer.json(&format!("keyvault show {VAULT}"));
    assert_eq!(vault["properties"]["kind"], "Hsm");
    let key = customer.create_key();
    assert_eq!(key["key"]["kty"], "RSA-HSM");
    assert_eq!(customer.token.objects().len(), 1);
    let identity = customer.create_set();
    let update = format!("disk update disk --disk-encryption-set {SET}");
    let refusal = customer.refused_with("Forbidden", &update);
    assert!(
        refusal.contains("'get'") && refusal.contains(&identity),
        "{refusal}"
    );
    customer.grant_to(&identity);
    customer.ok(&update);
    let first = customer.wrapping_key();
    assert!(
        key["key"]["kid"]
            .as_str()
            .unwrap()
            .ends_with(first.rsplit('/').next().unwrap())
    );

    let daemon = customer.disk.attach(&GUARDED);
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    queue.write(8, &[7; 4096]).unwrap();
    let enable = |enabled| {
        customer.ok(&format!(
            "keyvault key set-attributes {KEY} --vault-name {VAULT} --enabled {enabled}"
        ));
    };
    let wait = |queue: &mut frontend::queue::Queue, works: bool| {
        let end = Instant::now() + PATIENCE;
        while queue.read(8, 4096).is_ok() != works {
            assert!(Instant::now() < end, "reads do not become {works}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    enable(false);
    wait(queue, false);
    assert_eq!(queue.write(8, &[8; 4096]), Err(Status::IoErr));
    enable(true);
    wait(queue, true);
    assert_eq!(queue.read(8, 4096), Ok(vec![7; 4096]));

    // A new version, under which the attached disk is wrapped; the old one is needed no more.
    customer.create_key();
    assert_eq!(customer.token.objects().len(), 2);
    customer.ok(&format!(
        "disk-encryption-set update {SET} --enable-auto-key-rotation true"
    ));
    let second = customer.wrapping_key();
    assert_ne!(first, second);
    let old = first.rsplit('/').next().unwrap();
    customer.ok(&format!(
        "keyvault key set-attributes {KEY} --vault-name {VAULT} --version {old} --enabled false"
    ));
    std::thread::sleep(Duration::from_secs(2));
    queue.write(8, &[9; 4096]).unwrap();
    assert_eq!(queue.read(8, 4096), Ok(vec![9; 4096]));
}

#[test]
fn a_token_that_is_taken_out_is_no_refusal_and_comes_back() {
    let customer = TokenOwner::new().with_disk_under_the_key();
    let daemon = customer.disk.attach(&GUARDED);
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    queue.write(0, &[1; 512]).unwrap();
    customer.token.set_present(false);
    let create_key = format!("keyvault key create other --vault-name {VAULT}");
    let message = customer.refused_with("VaultUnreachable", &create_key);
    assert!(message.contains(LABEL), "{message}");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(queue.read(0, 512), Ok(vec![1; 512]), "the grace period");
    customer.token.set_present(true);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(queue.read(0, 512), Ok(vec![1; 512]));
    let disk = customer.json("disk show disk");
    assert_eq!(disk["keyAccess"]["state"], "Active", "{disk}");
}

#[test]
fn a_key_that_somebody_took_out_of_the_token_is_gone() {
    let customer = TokenOwner::new().with_disk_under_the_key();
    let daemon = customer.disk.attach(&GUARDED);
    let mut frontend = daemon.connect();
    let queue = &mut frontend.queues[0];
    queue.write(0, &[1; 512]).unwrap();
    for object in customer.token.objects() {
        fs::remove_file(object).unwrap();
    }
    let end = Instant::now() + PATIENCE;
    while queue.read(0, 512).is_ok() {
        assert!(Instant::now() < end, "a disk without a key is still served");
        std::thread::sleep(Duration::from_millis(20));
    }
    let message = customer.refused_with(
        "KeyNotFound",
        &format!("disk update disk --disk-encryption-set {SET}"),
    );
    assert!(message.contains("gone"), "{message}");
}

#[test]
fn an_imported_key_is_in_the_token_and_opens_what_it_wraps() {
    let customer = TokenOwner::new();
    let pem = customer.disk.state().join("key.pem");
    let made = std::process::Command::new("openssl")
        .args([
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:3072",
            "-out",
        ])
        .arg(&pem)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let key = customer.json(&format!(
        "keyvault key import {KEY} --vault-name {VAULT} --pem-file {}",
        pem.display()
    ));
    assert_eq!(key["key"]["kty"], "RSA-HSM");
    assert_eq!(customer.token.objects().len(), 1);
    // A JSON Web Key that asks for hardware gets it.
    let private = rsa::PrivateKey::new(&mut getrandom::SysRng, 2048).unwrap();
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let jwk = serde_json::json!({
        "kty": "RSA-HSM", "n": number(&private.n_bytes()), "e": number(&private.e_bytes()),
        "d": number(&private.d().to_be_bytes()),
    });
    let file = customer.disk.state().join("key.jwk");
    fs::write(&file, jwk.to_string()).unwrap();
    let import = format!("keyvault key import inhardware --vault-name {VAULT} --jwk-file");
    let key = customer.json(&format!("{import} {}", file.display()));
    assert_eq!(key["key"]["kty"], "RSA-HSM");
    assert_eq!(customer.token.objects().len(), 2);
    let identity = customer.create_set();
    customer.grant_to(&identity);
    customer.use_key();
    customer.ok("disk decrypt disk --output-file /dev/null");
}

#[test]
fn a_vault_is_made_only_with_a_token_that_can_be_used() {
    let customer = TokenOwner::new();
    let create = customer.create_vault("another");
    customer.token.write_pin("wrong", 0o600);
    let message = customer.refused_with("VaultHsmAccess", &create);
    assert!(message.contains("refuses the PIN"), "{message}");
    customer.token.write_pin(PIN, 0o644);
    let message = customer.refused_with("VaultHsmAccess", &create);
    assert!(message.contains("chmod 600"), "{message}");
    customer.token.write_pin(PIN, 0o600);
    let message = customer.refused_with(
        "VaultUnreachable",
        &create.replace("test\u{a0}token", "other"),
    );
    assert!(message.contains("'other': it is not there"), "{message}");
    let module = super::token::Token::module().to_str().unwrap();
    let message = customer.refused_with(
        "VaultUnreachable",
        &create.replace(module, "/no/such/library.so"),
    );
    assert!(message.contains("/no/such/library.so"), "{message}");
    assert_eq!(customer.json("keyvault list").as_array().unwrap().len(), 2);
    customer.ok(&create);
    // The command line never has the PIN.
    assert!(!create.contains(PIN));
}
