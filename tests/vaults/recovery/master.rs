//! Where master keys are, and new ones.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use test_support::{Host, holds};

use super::support::{ALL_MOMENTS, Lines, MOMENTS, content, host_with_disk, killed, private};

fn key_files(host: &Host) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(host.state().join("vaults/vlt"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("master"))
        .collect();
    names.sort();
    names
}

#[test]
fn the_first_use_says_that_the_platform_key_lies_beside_the_disks() {
    let host = Host::new();
    // A refusal is one line; what it made is said with the next success.
    let refused = host.line("disk create a --size 1MiB --data-dir /proc");
    assert!(!refused.status.success());
    assert_eq!(
        String::from_utf8(refused.stderr).unwrap().lines().count(),
        1
    );
    let first = host.line("disk create a --size 1MiB");
    let said = String::from_utf8(first.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("beside the disks"), "{said}");
    assert!(said.contains("keyvault reseal platform"), "{said}");
    let second = host.line("disk create b --size 1MiB");
    assert!(second.stderr.is_empty(), "{second:?}");
    host.good("keyvault reseal platform");
    host.good("disk decrypt a --output-file /dev/null");
}

#[test]
fn whoever_makes_a_vault_is_told_that_its_master_key_lies_beside_the_disks() {
    let host = Host::new();
    let made = host.line("keyvault create vlt");
    let said = String::from_utf8(made.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("vlt/master.key, beside the disks"), "{said}");
    assert!(said.contains("keyvault reseal vlt"), "{said}");
    fs::create_dir(host.path("keys")).unwrap();
    let elsewhere = host.path("keys").join("k");
    let made = host.line(&format!(
        "keyvault create two --master-key-file {}",
        elsewhere.display()
    ));
    assert!(made.status.success() && made.stderr.is_empty(), "{made:?}");
    // A refusal has no empty table before it.
    let refused = host.line("keyvault reseal none");
    assert!(
        !refused.status.success() && refused.stdout.is_empty(),
        "{refused:?}"
    );
}

#[test]
fn a_new_master_key_replaces_the_old_one_everywhere() {
    let host = host_with_disk(b"kept");
    let backup = host.path("k.backup");
    host.good(&format!(
        "keyvault key backup k --vault-name vlt --file {}",
        backup.display()
    ));
    let server = host.serve("");
    let vault = host.state().join("vaults/vlt");
    let old = fs::read(vault.join("master.key")).unwrap();
    let sealed: Vec<u8> = rusqlite::Connection::open(vault.join("vault.db"))
        .unwrap()
        .query_row("SELECT sealed FROM key_versions", [], |row| row.get(0))
        .unwrap();
    let file = host.path("keys");
    fs::create_dir(&file).unwrap();
    let file = file.join("vlt.key");
    let resealed = host.good(&format!(
        "keyvault reseal vlt --master-key-file {}",
        file.display()
    ));
    assert_eq!(resealed[0]["oldMasterKey"], serde_json::Value::Null);
    assert!(key_files(&host).is_empty());
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_ne!(fs::read(&file).unwrap(), old);
    drop(server);
    host.good("keyvault show vlt");
    assert!(
        !holds(&host.state(), &old),
        "the old master key is still there"
    );
    assert!(
        !holds(&host.state(), &sealed),
        "what it opened is still there"
    );
    assert_eq!(content(&host, 4), b"kept");
    host.good("audit verify");
    // A backup of a key from before still comes back.
    host.good("keyvault key delete k --vault-name vlt");
    host.good("keyvault key purge k --vault-name vlt --yes");
    host.good(&format!(
        "keyvault key restore --vault-name vlt --file {}",
        backup.display()
    ));
    assert_eq!(content(&host, 4), b"kept");
    // And back beside the database; the file elsewhere is its owner's.
    let resealed = host.good("keyvault reseal --all");
    assert_eq!(resealed.as_array().unwrap().len(), 1);
    assert!(
        resealed[0]["oldMasterKey"]
            .as_str()
            .unwrap()
            .contains("vlt.key")
    );
    fs::remove_file(&file).unwrap();
    assert_eq!(content(&host, 4), b"kept");
}

#[test]
fn a_credential_is_a_place_too_and_a_missing_one_is_named() {
    let host = host_with_disk(b"kept");
    let credentials = host.path("credentials");
    fs::create_dir(&credentials).unwrap();
    private(&credentials.join("vlt-master"), &[7; 32]);
    let with = |words: &[&str]| {
        let mut command = host.command(words);
        command.env("CREDENTIALS_DIRECTORY", &credentials);
        command.output().unwrap()
    };
    let output = with(&[
        "keyvault",
        "reseal",
        "vlt",
        "--master-credential",
        "vlt-master",
    ]);
    assert!(output.status.success(), "{output:?}");
    assert!(key_files(&host).is_empty());
    assert!(
        with(&["disk", "decrypt", "d", "--output-file", "/dev/null"])
            .status
            .success()
    );
    let message = host.bad("disk decrypt d --output-file /dev/null", "VaultMasterKey");
    assert!(
        message.contains("LoadCredentialEncrypted=vlt-master"),
        "{message}"
    );
}

#[test]
fn a_process_that_has_the_vault_open_follows_to_the_new_key() {
    let host = host_with_disk(b"kept");
    let installation = host.installation();
    let vault = installation.vault("vlt").unwrap();
    host.good("keyvault reseal vlt");
    let operator = installation.operator();
    // It seals under the new key, and opens what is under it.
    let new = vault::NewKey::new(vault::KeySize::Rsa2048);
    vault.create_key(&operator, "late", &new).unwrap();
    drop(vault);
    host.good("keyvault key show late --vault-name vlt");
    let vault = installation.vault("vlt").unwrap();
    vault.backup_key(&operator, "late").unwrap();
    let opened = installation.vault("vlt").unwrap();
    host.good("keyvault reseal vlt");
    opened.backup_key(&operator, "late").unwrap();
}

#[test]
fn a_reseal_that_is_killed_leaves_the_old_key_or_the_new_one() {
    kill_reseals(2 * MOMENTS);
}

#[test]
#[ignore = "more moments of the same: scripts/test --full"]
fn a_reseal_that_is_killed_at_any_moment_leaves_a_key() {
    kill_reseals(2 * ALL_MOMENTS);
}

fn kill_reseals(moments: u32) {
    let host = host_with_disk(b"kept");
    let command = |_| host.command(&["keyvault", "reseal", "vlt"]);
    killed(moments, command, |n| {
        assert_eq!(content(&host, 4), b"kept", "moment {n}");
    });
    host.good("keyvault reseal vlt");
    let left = key_files(&host);
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(content(&host, 4), b"kept");
    host.good("audit verify");
}
