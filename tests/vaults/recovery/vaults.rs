//! Vaults that are deleted, recovered, purged, lost, and found where nobody expects one.

use std::fs;

use test_support::Host;

use super::support::{Lines, content, host_with_disk};

#[test]
fn a_deleted_vault_refuses_everything_until_it_is_recovered() {
    let host = host_with_disk(b"kept");
    let message = host.bad("keyvault delete vlt --yes", "VaultInUse");
    for user in ["set 's'", "disk 'd'", "--force"] {
        assert!(message.contains(user), "{message}");
    }
    host.good("keyvault delete vlt --yes --force");
    let message = host.bad("disk decrypt d --output-file /dev/null", "VaultDeleted");
    assert!(message.contains("keyvault recover vlt"), "{message}");
    host.bad(
        "keyvault key create n --vault-name vlt --size 2048",
        "VaultDeleted",
    );
    host.bad("keyvault update vlt --retention-days 7", "VaultDeleted");
    assert_eq!(host.good("keyvault list"), serde_json::json!([]));
    let deleted = host.good("keyvault list-deleted");
    assert_eq!(deleted[0]["name"], "vlt");
    // The name stays taken.
    let message = host.bad("keyvault create vlt", "VaultDeleted");
    assert!(message.contains("keyvault purge vlt"), "{message}");
    host.good("keyvault recover vlt");
    host.bad("keyvault recover vlt", "Conflict");
    assert_eq!(content(&host, 4), b"kept");
}

#[test]
fn purging_needs_a_deletion_and_no_protection_and_frees_the_name() {
    let host = Host::new();
    host.good("keyvault create vlt --enable-purge-protection true");
    host.bad("keyvault purge vlt --yes", "Conflict");
    host.good("keyvault delete vlt --yes");
    let message = host.bad("keyvault purge vlt --yes", "ForbiddenByPolicy");
    assert!(message.contains("purge protection"), "{message}");
    host.good("keyvault create two");
    host.good("keyvault delete two --yes");
    host.good("keyvault purge two --yes");
    host.bad("keyvault show two", "VaultNotFound");
    assert!(!host.state().join("vaults/two").exists());
    host.good("keyvault create two");
    host.bad("keyvault delete platform --yes --force", "VaultNotFound");
    host.good("disk create p --size 1MiB");
    host.bad("keyvault delete platform --yes --force", "BadParameter");
}

/// The case: the vault's files are lost, its master key and a backup of its key are there.
#[test]
fn a_lost_vault_comes_back_from_its_master_key_and_backups_of_its_keys() {
    let host = host_with_disk(b"kept");
    let backup = host.path("k.backup");
    host.good(&format!(
        "keyvault key backup k --vault-name vlt --file {}",
        backup.display()
    ));
    let dir = host.state().join("vaults/vlt");
    let master = host.path("kept-master.key");
    fs::copy(dir.join("master.key"), &master).unwrap();
    fs::remove_dir_all(&dir).unwrap();

    let message = host.bad("keyvault create vlt", "Conflict");
    assert!(message.contains("keyvault delete vlt --force"), "{message}");
    // No directory is no purge that was cut off.
    let message = host.bad("keyvault purge vlt --yes", "Conflict");
    assert!(message.contains("--force"), "{message}");
    host.good("keyvault delete vlt --force --yes");
    host.good(&format!(
        "keyvault create vlt --master-key-file {}",
        master.display()
    ));
    host.good(&format!(
        "keyvault key restore --vault-name vlt --file {}",
        backup.display()
    ));
    super::support::grant(&host, "vlt", "s");
    assert_eq!(content(&host, 4), b"kept");
}

/// `create` over what is there already takes all options, or refuses.
#[test]
fn a_leftover_directory_without_a_vault_is_named_and_left_alone() {
    let host = Host::new();
    host.good("keyvault create vlt");
    let left = host.state().join("vaults/left");
    fs::create_dir(&left).unwrap();
    let line = "keyvault create left --enable-purge-protection";
    for (file, what) in [(None, "no vault.db"), (Some("master.key"), "a master key")] {
        if let Some(file) = file {
            fs::write(left.join(file), [1; 32]).unwrap();
        }
        let message = host.bad(line, "Conflict");
        for said in [
            left.to_str().unwrap(),
            "is there already",
            what,
            "move the directory away",
        ] {
            assert!(message.contains(said), "{message}");
        }
    }
    assert_eq!(fs::read_dir(&left).unwrap().count(), 1);
    fs::remove_dir_all(&left).unwrap();
    host.good(line);
}

#[test]
fn a_leftover_vault_is_adopted_only_as_what_is_asked_for() {
    let (host, other) = (Host::new(), Host::new());
    host.good("keyvault list");
    other.good("keyvault create vlt");
    other.good("keyvault key create k --vault-name vlt --size 2048");
    let vault = host.state().join("vaults/vlt");
    fs::rename(other.state().join("vaults/vlt"), &vault).unwrap();
    for options in [
        "--enable-purge-protection true",
        "--retention-days 7",
        "--master-key-file /nonexistent/key",
    ] {
        let message = host.bad(&format!("keyvault create vlt {options}"), "Conflict");
        assert!(message.contains("catalog rebuild"), "{message}");
        host.bad("keyvault show vlt", "VaultNotFound");
    }
    host.good("keyvault create vlt");
    // Its new owner may use it.
    host.good("keyvault key show k --vault-name vlt");
}

#[test]
fn a_copy_without_the_write_ahead_log_is_not_called_intact() {
    let host = host_with_disk(b"kept");
    let server = host.serve("");
    let vault = host.state().join("vaults/vlt/vault.db");
    // While the server has the database open, nothing is moved from the write-ahead log by closing it.
    host.good("keyvault key list --vault-name vlt");
    let held = rusqlite::Connection::open(&vault).unwrap();
    held.query_row("SELECT count(*) FROM audit", [], |_| Ok(()))
        .unwrap();
    host.good("keyvault key create k --vault-name vlt --size 2048");
    let versions = host.good("keyvault key list-versions k --vault-name vlt");
    assert_eq!(versions.as_array().unwrap().len(), 2);
    let copy = host.path("copy.db");
    fs::copy(&vault, &copy).unwrap();
    drop(held);
    drop(server);
    host.good("keyvault key list --vault-name vlt");
    host.good("audit verify --vault vlt");
    // And now it is put back.
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(vault.with_extension(format!("db{suffix}")));
    }
    fs::copy(&copy, &vault).unwrap();
    let lost = host.line("keyvault key list-versions k --vault-name vlt -o json");
    let lost: serde_json::Value = serde_json::from_slice(&lost.stdout).unwrap();
    assert_eq!(
        lost.as_array().unwrap().len(),
        1,
        "the copy has the newest version after all"
    );
    let output = host.line("audit verify --vault vlt -o json");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("write-ahead log"), "{text}");
    // Whatever is appended does not hide it, beyond the record that was seen last.
    let vault = host.installation().vault("vlt").unwrap();
    let operator = host.installation().operator();
    for _ in 0..30 {
        vault.keys(&operator).unwrap();
    }
    drop(vault);
    for _ in 0..2 {
        host.line("keyvault key list --vault-name vlt");
        assert_eq!(host.line("audit verify --vault vlt").status.code(), Some(1));
    }
}
