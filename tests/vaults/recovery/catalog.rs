//! A lost catalog, and a restored one.

use std::fs;
use std::path::PathBuf;

use installation::catalog::{OperationRecord, OperationState, Touch};
use serde_json::json;
use test_support::Host;
use time::OffsetDateTime;
use uuid::Uuid;

use super::backups::{bring_disks, create, lose_state, with_identity};
use super::support::{
    ALL_MOMENTS, Lines, MOMENTS, content, grant, host_with_disk, killed, principal,
};

fn lose_catalog(host: &Host) {
    for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        let _ = fs::remove_file(host.state().join(name));
    }
}

#[test]
fn a_lost_catalog_comes_back_with_the_identities_that_policies_name() {
    let host = host_with_disk(b"kept");
    let secret = host.good("identity create alice")["secret"].clone();
    let ids = || {
        let alice = host.good("identity show alice");
        let platform = host.installation().platform().object_id;
        (
            principal(&host, "s"),
            alice["principalId"].clone(),
            alice["clientId"].clone(),
            platform,
        )
    };
    host.good("disk create p --size 1MiB");
    host.good("snapshot create snap --source d");
    let before = ids();
    lose_catalog(&host);
    // Nothing makes new identities in its place.
    let message = host.bad("disk list", "CatalogLost");
    assert!(message.contains("catalog rebuild"), "{message}");
    assert!(!host.state().join("catalog.db").exists());

    let rebuilt = host.good("catalog rebuild");
    assert_eq!(rebuilt["identitiesKept"], true);
    assert_eq!(rebuilt["diskEncryptionSets"], serde_json::json!([]));
    assert_eq!(
        rebuilt["resources"].as_array().unwrap().len(),
        3,
        "{rebuilt}"
    );
    assert_eq!(ids(), before);
    assert_eq!(content(&host, 4), b"kept");
    host.good("disk decrypt p --output-file /dev/null");
    // The secret too is still the identity's.
    let installation = host.installation();
    let found = installation.identity_by_secret(secret.as_str().unwrap());
    assert!(found.unwrap().is_some());
    // Again changes nothing.
    let again = host.good("catalog rebuild");
    assert_eq!(again["resources"], serde_json::json!([]));
}

#[test]
fn what_a_lost_catalog_knew_and_is_not_found_may_need_its_key_still() {
    let (host, elsewhere) = host_with_disk_elsewhere();
    lose_catalog(&host);
    let rebuilt = host.good("catalog rebuild");
    assert_eq!(rebuilt["notFound"], serde_json::json!(["e"]), "{rebuilt}");
    host.good("disk-encryption-set update s --key-url https://vlt.vault.localhost/keys/k2");
    let what_if = || host.good("keyvault key what-if --disable k --vault-name vlt");
    let effect = what_if();
    assert_eq!(effect["safeToDisable"], "unknown", "{effect}");
    let reason = effect["reasons"][0].as_str().unwrap();
    assert!(
        reason.contains("'e' used it by the vault's log"),
        "{reason}"
    );
    // A new one of that name is another one.
    host.good("disk create e --size 1MiB");
    assert_eq!(what_if()["safeToDisable"], "unknown");
    host.good("disk delete e --yes");
    let found = format!("catalog rebuild --data-dir {}", elsewhere.display());
    let rebuilt = host.good(&found);
    assert_eq!(rebuilt["notFound"], serde_json::json!([]), "{rebuilt}");
    assert_eq!(what_if()["safeToDisable"], "no");
}

/// A host that has the disk `e` in a directory of its own, which is returned, and the key `k2` to move to.
fn host_with_disk_elsewhere() -> (Host, PathBuf) {
    let host = host_with_disk(b"kept");
    let elsewhere = host.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let line = "disk create e --size 1MiB --disk-encryption-set s --data-dir";
    host.good(&format!("{line} {}", elsewhere.display()));
    host.good("disk decrypt e --output-file /dev/null");
    host.good("keyvault key create k2 --vault-name vlt --size 2048");
    (host, elsewhere)
}

/// That the key `k` is not called safe to disable.
fn is_unknown(host: &Host, because: &str) {
    let effect = host.good("keyvault key what-if --disable k --vault-name vlt");
    assert_eq!(effect["safeToDisable"], "unknown", "{effect}");
    let reasons = effect["reasons"].as_array().unwrap();
    let mut reasons = reasons.iter().map(|reason| reason.as_str().unwrap());
    assert!(reasons.any(|reason| reason.contains(because)), "{effect}");
}

const MOVE: &str = "disk-encryption-set update s --key-url https://vlt.vault.localhost/keys/k2";
const NOT_NOTED: &str = "the log of the key vault 'vlt' names was not compared";
const MADE_AGAIN: &str = "the catalog was lost and made again";
const RESTORED: &str = "the catalog was restored";
const MAY_LACK: &str = "the key vault 'vlt' was restored or made anew";

/// No log names it: it was made of a disk, whose name is in the log.
#[test]
fn a_snapshot_that_a_rebuild_did_not_find_may_need_its_key_still() {
    for has_copy in [true, false] {
        let host = host_with_disk(b"kept");
        host.good("keyvault key create k2 --vault-name vlt --size 2048");
        let elsewhere = host.path("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let elsewhere = elsewhere.display();
        host.good(&format!(
            "snapshot create snap --source d --data-dir {elsewhere}"
        ));
        lose_catalog(&host);
        if !has_copy {
            fs::remove_file(host.state().join("catalog-copy.json")).unwrap();
        }
        let rebuilt = host.good("catalog rebuild");
        assert_eq!(rebuilt["notFound"], serde_json::json!([]), "{rebuilt}");
        grant(&host, "vlt", "s");
        host.good(MOVE);
        is_unknown(&host, MADE_AGAIN);
        // A later rebuild is none that has looked everywhere.
        host.good("catalog rebuild");
        is_unknown(&host, MADE_AGAIN);
        let line = format!("catalog rebuild --all-directories-named --data-dir {elsewhere}");
        let rebuilt = host.good(&line);
        assert_eq!(rebuilt["resources"][0]["name"], "snap", "{rebuilt}");
        let effect = host.good("keyvault key what-if --disable k --vault-name vlt");
        assert_eq!(effect["safeToDisable"], "no", "{has_copy}: {effect}");
    }
}

/// The operator's word does not count for what could not be looked at.
#[test]
fn the_word_that_all_directories_are_named_needs_all_of_them_looked_into() {
    let host = host_with_disk(b"kept");
    lose_catalog(&host);
    let is_marked = || host.installation().catalog().restored().unwrap().is_some();
    let line = "catalog rebuild --all-directories-named";
    let disks = host.state().join("disks");
    // As `cp -r` into a directory that is there makes it.
    let nested = disks.join("disks");
    fs::create_dir(&nested).unwrap();
    fs::rename(disks.join("d"), nested.join("d")).unwrap();
    let message = host.bad(line, "CatalogIncomplete");
    assert!(message.contains(nested.to_str().unwrap()), "{message}");
    assert!(is_marked());
    fs::rename(nested.join("d"), disks.join("d")).unwrap();
    fs::remove_dir(&nested).unwrap();
    // A file system that is not mounted.
    let away = disks.join("away");
    std::os::unix::fs::symlink(host.path("not-mounted"), &away).unwrap();
    let message = host.bad(line, "CatalogIncomplete");
    assert!(message.contains(away.to_str().unwrap()), "{message}");
    assert!(is_marked());
    fs::remove_file(&away).unwrap();
    let rebuilt = host.good(line);
    assert_eq!(rebuilt["notFound"], serde_json::json!([]), "{rebuilt}");
    assert!(!is_marked());
}

#[test]
fn a_rebuild_that_failed_is_made_up_for_before_a_key_is_called_safe() {
    let (host, _) = host_with_disk_elsewhere();
    lose_catalog(&host);
    let failed = host.line("catalog rebuild --data-dir /there/is/no/such/directory");
    assert!(!failed.status.success());
    host.good(MOVE);
    is_unknown(&host, NOT_NOTED);
    let rebuilt = host.good("catalog rebuild");
    assert_eq!(rebuilt["notFound"], serde_json::json!(["e"]), "{rebuilt}");
    is_unknown(&host, "'e' used it by the vault's log");
    // One that is made afterwards has nothing to make up for.
    host.good("keyvault create new");
    host.good("keyvault key create k --vault-name new --size 2048");
    let effect = host.good("keyvault key what-if --disable k --vault-name new");
    assert_eq!(effect["safeToDisable"], "yes", "{effect}");
    host.good("catalog forget e --yes");
    host.good("catalog rebuild");
    is_unknown(&host, MADE_AGAIN);
    host.good("catalog rebuild --all-directories-named");
    let effect = host.good("keyvault key what-if --disable k --vault-name vlt");
    assert_eq!(effect["safeToDisable"], "yes", "{effect}");
}

/// A disk that was made after the backup is in no catalog and in no log that comes back.
#[test]
fn no_key_is_called_safe_after_a_restore_until_all_directories_were_named() {
    let (host, elsewhere) = host_with_disk_elsewhere();
    let elsewhere = elsewhere.display();
    let file = create(&host, "--with-master-key");
    host.good(&format!(
        "disk create after --size 1MiB --disk-encryption-set s --data-dir {elsewhere}"
    ));
    lose_state(&host);
    let restored = host.line(&with_identity(&host, "restore", &file));
    assert!(restored.status.success(), "{restored:?}");
    let notes = String::from_utf8(restored.stderr).unwrap();
    for note in [&format!("{elsewhere}/after"), "--all-directories-named"] {
        assert!(notes.contains(note), "{notes}");
    }
    bring_disks(&host);
    host.good(MOVE);
    // What was noted when the backup was made says nothing of what was done since.
    for because in [RESTORED, MAY_LACK, NOT_NOTED] {
        is_unknown(&host, because);
    }
    let usage = host.good("disk-encryption-set show-usage s");
    assert_eq!(usage[1]["safeToDisable"], "unknown", "{usage}");
    // The logs are as old as the backup.
    host.good("catalog rebuild");
    is_unknown(&host, RESTORED);
    let line = "catalog rebuild --all-directories-named --data-dir";
    let failed = host.line(&format!("{line} /there/is/no/such/directory"));
    assert!(!failed.status.success());
    is_unknown(&host, RESTORED);
    // A vault that is made now has wrapped nothing before.
    host.good("keyvault create new");
    host.good("keyvault key create k --vault-name new --size 2048");
    let effect = host.good("keyvault key what-if --disable k --vault-name new");
    assert_eq!(effect["safeToDisable"], "yes", "{effect}");

    let rebuilt = host.good(&format!("{line} {elsewhere}"));
    assert_eq!(rebuilt["resources"][0]["name"], "after", "{rebuilt}");
    let what_if = || host.good("keyvault key what-if --disable k --vault-name vlt");
    assert_eq!(what_if()["safeToDisable"], "no");
    host.good(MOVE);
    assert_eq!(what_if()["safeToDisable"], "yes", "{}", what_if());
}

#[test]
fn another_disk_of_the_name_is_not_the_one_that_was_not_found() {
    let (host, _) = host_with_disk_elsewhere();
    let away = host.path("away");
    fs::create_dir(&away).unwrap();
    host.good(&format!(
        "disk create p --size 1MiB --data-dir {}",
        away.display()
    ));
    lose_catalog(&host);
    let rebuilt = host.good("catalog rebuild");
    assert_eq!(
        rebuilt["notFound"],
        serde_json::json!(["e", "p"]),
        "{rebuilt}"
    );
    host.good(MOVE);
    is_unknown(&host, "'e' used it by the vault's log");
    // It is the one by its name alone.
    host.good(&format!(
        "disk register --dir {}/p --name e",
        away.display()
    ));
    is_unknown(&host, "'e' used it by the vault's log");
}

#[test]
fn a_vault_that_a_rebuild_could_not_open_is_made_up_for() {
    let (host, _) = host_with_disk_elsewhere();
    let (vault, away) = (host.state().join("vaults/vlt"), host.path("away"));
    // As if the log had so many disks that it did not tell this one by its name any more.
    let log = rusqlite::Connection::open(vault.join("vault.db")).unwrap();
    let unnamed = "
        UPDATE key_uses SET disk = '' WHERE disk = 'e';
        WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 255)
        INSERT INTO key_uses (name, version, caller, operation, disk, origin, first, last, uses)
        SELECT name, version, caller, operation, 'other' || n, origin, first, last, uses
        FROM key_uses, n WHERE disk = '' AND name = 'k'";
    log.execute_batch(unnamed).unwrap();
    drop(log);
    lose_catalog(&host);
    fs::rename(&vault, &away).unwrap();
    host.good("catalog rebuild");
    fs::rename(&away, &vault).unwrap();
    host.good(MOVE);
    is_unknown(&host, NOT_NOTED);
    let rebuilt = host.good("catalog rebuild");
    assert_eq!(rebuilt["notFound"][0], "disks without a name", "{rebuilt}");
    is_unknown(&host, "'disks without a name' used it by the vault's log");
}

#[test]
fn without_the_copy_headers_bring_disks_and_sets_back_and_say_what_to_grant() {
    let host = host_with_disk(b"kept");
    let elsewhere = host.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let line = format!(
        "disk create e --size 1MiB --disk-encryption-set s --data-dir {}",
        elsewhere.display()
    );
    host.good(&line);
    host.good("disk create p --size 1MiB");
    let old = principal(&host, "s");
    lose_catalog(&host);
    fs::remove_file(host.state().join("catalog-copy.json")).unwrap();
    host.bad("keyvault list", "CatalogLost");

    let rebuilt = host.good(&format!(
        "catalog rebuild --data-dir {}",
        elsewhere.display()
    ));
    assert_eq!(rebuilt["identitiesKept"], false);
    assert_eq!(rebuilt["vaults"], serde_json::json!(["platform", "vlt"]));
    assert_eq!(
        rebuilt["resources"].as_array().unwrap().len(),
        3,
        "{rebuilt}"
    );
    let set = &rebuilt["diskEncryptionSets"][0];
    assert_eq!(set["keyUrl"], "https://vlt.vault.localhost/keys/k");
    assert_ne!(set["principalId"], old.as_str());
    let grant_command = set["command"].as_str().unwrap();
    assert!(
        grant_command.contains(&principal(&host, "s")),
        "{grant_command}"
    );
    // The platform's key is usable at once, the customer's once it is granted.
    host.good("disk decrypt p --output-file /dev/null");
    assert!(
        !host
            .line("disk decrypt d --output-file /dev/null")
            .status
            .success()
    );
    grant(&host, "vlt", "s");
    assert_eq!(content(&host, 4), b"kept");
    host.good("disk decrypt e --output-file /dev/null");
}

#[test]
fn a_rebuild_that_is_killed_is_repeated() {
    kill_rebuilds(MOMENTS);
}

#[test]
#[ignore = "more moments of the same: scripts/test --full"]
fn a_rebuild_that_is_killed_at_any_moment_is_repeated() {
    kill_rebuilds(ALL_MOMENTS);
}

fn kill_rebuilds(moments: u32) {
    let host = host_with_disk(b"kept");
    let before = principal(&host, "s");
    lose_catalog(&host);
    let command = |_| host.command(&["catalog", "rebuild"]);
    killed(moments, command, |n| {
        host.good("catalog rebuild");
        assert_eq!(principal(&host, "s"), before, "moment {n}");
        assert_eq!(content(&host, 4), b"kept");
        lose_catalog(&host);
    });
}

/// It may be the deletion of what was to be restored.
#[test]
fn what_went_on_when_the_backup_was_made_has_ended_where_it_is_restored() {
    let host = host_with_disk(b"kept");
    let now = OffsetDateTime::now_utc();
    let record = OperationRecord {
        id: Uuid::new_v4(),
        deployment: None,
        target: "/subscriptions/s/resourceGroups/rg".into(),
        state: OperationState::Running,
        started: Touch {
            at: now,
            by: Uuid::nil(),
        },
        changed: now,
        request: json!({"work": {"deleteGroup": "rg"}}),
        answer: json!({}),
    };
    let put = host.installation().catalog().put_operation(&record);
    put.unwrap();
    let file = create(&host, "--with-master-key");
    lose_state(&host);
    let restored = host.line(&with_identity(&host, "restore", &file));
    assert!(restored.status.success(), "{restored:?}");
    let found = host.installation().catalog().operation(record.id);
    let found = found.unwrap().unwrap();
    assert_eq!(found.state, OperationState::Failed);
    assert_eq!(found.answer["error"]["code"], "OperationInterrupted");
}
