//! `sealdisk status` and `sealdisk alarm`: each kind of alarm of what is not attached, by what really is the matter.

use std::fs;
use std::time::{Duration, Instant};

use installation::envelope::SLOT_OFFSETS;
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use test_support::alarms::{alarms, status};
use test_support::small_fs::SmallFs;
use test_support::{Disk, Host, KEY, VAULT, one_line};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use vault::{KeyId, KeyVault};

const ALL: &[&str] = &["get", "wrapKey", "unwrapKey"];
const SET: &str = "set1";
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// An installation to which it does not matter how full the disk of the tests is.
fn new_host() -> Host {
    let host = Host::new();
    host.ok("alarm update --space-warning 0 --space-critical 0");
    host
}

fn only(host: &Host, code: &str) -> Value {
    let found = alarms(host, code);
    assert_eq!(found.len(), 1, "{code}: {:#}", status(host).1["alarms"]);
    let alarm = found[0].clone();
    for text in ["message", "remedy"] {
        assert!(
            alarm[text].as_str().is_some_and(|text| !text.is_empty()),
            "{alarm}"
        );
    }
    alarm
}

/// So many seconds from now.
fn from_now(seconds: i64) -> String {
    let time = OffsetDateTime::now_utc().truncate_to_second() + time::Duration::seconds(seconds);
    time.format(&Rfc3339).unwrap()
}

const DAY: i64 = 24 * 3600;

#[test]
fn a_host_with_nothing_wrong_is_fine() {
    let host = new_host();
    host.encryption_set(SET, ALL);
    host.ok("disk create d --size 1MiB --disk-encryption-set set1");
    let (code, view) = status(&host);
    assert_eq!((code, &view["status"]), (Some(0), &"Ok".into()), "{view:#}");
    assert_eq!(view["disks"]["states"]["Unattached"], 1);
    assert_eq!(view["vaults"][0]["name"], VAULT);
    assert!(view["space"][0]["totalBytes"].as_u64() > view["space"][0]["availableBytes"].as_u64());
    // It is looked at each minute, and the log of the vault is not for that.
    let records = || {
        let vault = host.installation().vault(VAULT).unwrap();
        vault.audit_log().unwrap().len()
    };
    let before = records();
    status(&host);
    assert_eq!(records(), before);
    let screen = host.text("status");
    assert!(
        screen.contains("no alarm") && screen.contains("1: 1 Unattached"),
        "{screen}"
    );
    assert!(screen.lines().count() <= 24, "one screen:\n{screen}");
}

#[test]
fn a_vault_whose_database_is_gone_has_no_number_of_keys() {
    let host = new_host();
    host.encryption_set(SET, ALL);
    let database = host.state().join("vaults").join(VAULT).join("vault.db");
    fs::remove_file(&database).unwrap();
    let screen = String::from_utf8(host.run("status").stdout).unwrap();
    let keys = screen.lines().find(|line| line.starts_with("keys"));
    let expected = format!("keys     error: the vault {VAULT} cannot be read (");
    assert!(
        keys.is_some_and(|line| line.starts_with(&expected)),
        "{screen}"
    );
    let (_, view) = status(&host);
    assert_eq!(view["keys"]["unreadableVaults"][0]["name"], VAULT);
}

#[test]
fn where_there_is_no_installation_nothing_is_known_and_none_is_made() {
    let host = Host::new();
    let missing = host.path("typo/state");
    for command in ["status", "status --watch"] {
        let state = missing.display();
        let run = host.run(&format!("--state-dir {state} {command}"));
        assert_eq!(run.status.code(), Some(3), "{command}");
        assert!(
            one_line(&run).contains("no installation"),
            "{}",
            one_line(&run)
        );
        assert!(!host.path("typo").exists(), "{command}");
    }
}

#[test]
fn the_exit_status_says_how_grave_it_is() {
    let host = new_host();
    host.encryption_set(SET, ALL);
    let expires = |seconds: i64| {
        let time = from_now(seconds);
        let name =
            format!("keyvault key set-attributes {KEY} --vault-name {VAULT} --expires {time}");
        host.ok(&name);
    };
    expires(20 * DAY);
    let warned = host.run("status");
    assert_eq!(warned.status.code(), Some(1));
    assert_eq!(
        one_line(&warned),
        "error: 1 warning; docs/alarms.md says what to do"
    );
    let alarm = only(&host, "KeyNearExpiry");
    assert_eq!(alarm["severity"], "Warning");
    let key = format!("https://{VAULT}.vault.localhost/keys/{KEY}/");
    assert!(
        alarm["subject"]["name"].as_str().unwrap().starts_with(&key),
        "{alarm}"
    );
    assert!(
        alarm["since"].as_str().unwrap() < from_now(0).as_str(),
        "{alarm}"
    );
    assert!(
        alarm["message"]
            .as_str()
            .unwrap()
            .contains("the disk encryption set set1"),
        "{alarm}"
    );

    expires(5 * DAY);
    let (code, view) = status(&host);
    assert_eq!((code, &view["status"]), (Some(2), &"Critical".into()));
    assert_eq!(view["alarms"][0]["severity"], "Critical");
    let screen = String::from_utf8(host.run("status").stdout).unwrap();
    assert!(screen.contains("critical KeyNearExpiry since "), "{screen}");

    host.ok("alarm update --key-warning 4d --key-critical 1d");
    assert_eq!(status(&host).0, Some(0), "another threshold");
    expires(1);
    let end = Instant::now() + PATIENCE;
    while alarms(&host, "KeyExpired").is_empty() {
        assert!(Instant::now() < end, "{:#}", status(&host).1);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(only(&host, "KeyExpired")["severity"], "Critical");
    host.ok(&format!(
        "keyvault key set-attributes {KEY} --vault-name {VAULT} --enabled false"
    ));
    assert!(
        alarms(&host, "KeyExpired").is_empty(),
        "it protects nothing that its end could stop"
    );
    // No disk can be made with its set any more, and none has been made yet.
    assert_eq!(only(&host, "KeyUnusable")["severity"], "Warning");
    assert_eq!(status(&host).0, Some(1));
    // What cannot be known is neither fine nor a warning.
    fs::write(host.state().join("alarms.json"), "{").unwrap();
    assert_eq!(host.run("status").status.code(), Some(3));
    assert_eq!(host.run("status --bogus").status.code(), Some(2));
}

/// What is not attached is told before somebody needs it, once for a key, with a command that helps.
#[test]
fn a_key_that_is_refused_is_told_once_for_all_disks_under_it() {
    let host = new_host();
    host.encryption_set(SET, ALL);
    for name in ["d", "e"] {
        let create = format!("disk create {name} --size 1MiB --disk-encryption-set set1");
        host.ok(&create);
    }
    host.ok("snapshot create s --source d");
    assert_eq!(status(&host).0, Some(0));
    let set = host.json("disk-encryption-set show set1");
    let principal = set["identity"]["principalId"].as_str().unwrap();
    let later = from_now(DAY);
    for (loss, why) in [
        (
            format!("keyvault key set-attributes {KEY} --vault-name {VAULT} --enabled false"),
            "is disabled",
        ),
        (
            format!("keyvault key set-attributes {KEY} --vault-name {VAULT} --not-before {later}"),
            "may not be used before",
        ),
        (
            format!("keyvault delete-policy {VAULT} --object-id {principal}"),
            "is not granted to the identity",
        ),
        (
            format!(
                "keyvault set-policy {VAULT} --object-id {principal} --key-permissions get list"
            ),
            "is not granted to the identity",
        ),
        (
            format!("keyvault key delete {KEY} --vault-name {VAULT} --yes"),
            "is deleted",
        ),
        (
            format!("keyvault delete {VAULT} --force --yes"),
            "is in a key vault that is deleted",
        ),
    ] {
        host.ok(&loss);
        let alarm = only(&host, "KeyUnusable");
        assert_eq!(alarm["severity"], "Critical");
        assert_eq!(alarm["subject"]["kind"], "Key");
        let key = format!("https://{VAULT}.vault.localhost/keys/{KEY}/");
        let message = alarm["message"].as_str().unwrap();
        for part in [
            why,
            &key,
            "the disk d, the disk e, the snapshot s",
            "the disk encryption set set1",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert_eq!(status(&host).0, Some(2));
        // What is to be done is what helps.
        let remedy = alarm["remedy"].as_str().unwrap();
        let command = remedy.split('`').nth(1).unwrap();
        let command = command.strip_prefix("sealdisk ").unwrap();
        host.ok(&command.replace("TIME", &from_now(-DAY)));
        assert_eq!(status(&host).0, Some(0), "{loss}, {command}");
    }
    host.ok("disk-encryption-set identity remove set1 --yes");
    let alarm = only(&host, "KeyUnusable");
    assert!(
        alarm["message"]
            .as_str()
            .unwrap()
            .contains("has no identity"),
        "{alarm}"
    );
}

#[test]
fn thresholds_are_kept_and_what_makes_no_sense_is_refused() {
    let host = new_host();
    let show = host.json("alarm show");
    assert_eq!(
        (&show["keyWarningSeconds"], &show["lookSeconds"]),
        (&(30 * DAY).into(), &60.into())
    );
    host.ok("alarm update --look-interval 5s --space-warning 20");
    let show = host.json("alarm show");
    assert_eq!(
        (&show["lookSeconds"], &show["spaceWarningPercent"]),
        (&5.into(), &20.into())
    );
    for bad in [
        "alarm update --look-interval 0",
        "alarm update --key-critical 31d",
        "alarm update --space-critical 21",
        "alarm update --certificate /nonexistent/c.pem",
        "alarm update --certificate /etc/passwd",
    ] {
        host.refused_with("BadParameter", bad);
    }
    assert_eq!(host.json("alarm show"), show);
}

#[test]
fn a_certificate_near_its_end_is_told() {
    let host = new_host();
    host.ok("keyvault create myvault");
    let path = host.path("c.pem");
    let write = |days: i64| {
        let mut params = CertificateParams::new(vec!["v.example".into()]).unwrap();
        params.not_after = OffsetDateTime::now_utc() + time::Duration::days(days);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        fs::write(&path, certificate.pem()).unwrap();
    };
    write(400);
    host.ok(&format!(
        "alarm update --certificate {}",
        host.file("c.pem")
    ));
    // The authority that Sealdisk makes is looked at too.
    host.ok("keyvault serve --print-ca");
    assert_eq!(status(&host).0, Some(0));
    write(10);
    assert_eq!(only(&host, "CertificateNearExpiry")["severity"], "Warning");
    write(-1);
    assert_eq!(
        only(&host, "CertificateExpired")["subject"]["name"],
        host.file("c.pem")
    );
    fs::remove_file(&path).unwrap();
    assert_eq!(only(&host, "NotKnown")["subject"]["kind"], "Certificate");
    host.ok("alarm update --no-certificates");
    assert_eq!(status(&host).0, Some(0));
}

#[test]
fn a_disk_under_an_old_key_version_is_told_until_the_rotation_is_done() {
    let host = new_host();
    host.encryption_set(SET, ALL);
    host.ok("disk-encryption-set update set1 --enable-auto-key-rotation true");
    host.ok("disk create d --size 1MiB --disk-encryption-set set1");
    host.ok("snapshot create s --source d");
    host.ok("alarm update --rotation-grace 0");
    assert_eq!(status(&host).0, Some(0));
    host.ok(&format!(
        "keyvault key create {KEY} --vault-name {VAULT} --size 2048"
    ));
    let old = alarms(&host, "OldKeyVersion");
    let names: Vec<_> = old.iter().map(|alarm| &alarm["subject"]["name"]).collect();
    assert_eq!(names, ["d", "s"], "{old:#?}");
    assert_eq!(old[0]["severity"], "Warning");
    host.ok("alarm update --rotation-grace 2d");
    assert_eq!(status(&host).0, Some(0), "it may take its time");
    host.ok("alarm update --rotation-grace 0");
    host.ok("disk-encryption-set rotate set1");
    assert_eq!(status(&host).0, Some(0), "{:#}", status(&host).1["alarms"]);
}

#[test]
fn a_file_system_that_is_full_is_told_once_for_all_disks_on_it() {
    let Some(fs) = SmallFs::mount("tmpfs") else {
        return;
    };
    let disk = fs.disk(1 << 20);
    disk.ok(&[
        "disk",
        "create",
        "other",
        "--size",
        "1MiB",
        "--data-dir",
        fs.path().to_str().unwrap(),
    ]);
    let on_it = |disk: &Disk| {
        let found = alarms(disk, "FileSystemFilling").into_iter();
        let is_on_it = |alarm: &Value| {
            let name = alarm["subject"]["name"].as_str().unwrap();
            name.starts_with(fs.path().to_str().unwrap())
        };
        found.filter(is_on_it).collect::<Vec<_>>()
    };
    assert!(on_it(&disk).is_empty());
    let full = fs.fill();
    let found = on_it(&disk);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0]["severity"], "Critical");
    drop(full);
    assert!(on_it(&disk).is_empty());
}

#[test]
fn an_identity_near_the_limit_of_its_vault_is_told() {
    let host = new_host();
    host.encryption_set(SET, ALL);
    host.ok(&format!("keyvault update {VAULT} --operations-limit 100"));
    assert!(alarms(&host, "VaultNearQuota").is_empty());
    let installation = host.installation();
    let (vault, nobody) = (installation.vault(VAULT).unwrap(), installation.platform());
    let key = KeyId {
        name: KEY.into(),
        version: None,
    };
    let end = Instant::now() + PATIENCE;
    loop {
        // Each refusal counts as 10, until that is refused too.
        for _ in 0..20 {
            assert!(vault.key(&nobody, &key).is_err());
        }
        // The limit is one of 10 seconds, so that a slow host may see it too late.
        if let [alarm] = &alarms(&host, "VaultNearQuota")[..] {
            let message = alarm["message"].as_str().unwrap();
            assert!(message.contains(&nobody.object_id.to_string()), "{message}");
            assert_eq!(alarm["subject"]["name"], VAULT);
            return;
        }
        assert!(Instant::now() < end, "it is never told");
    }
}

#[test]
fn a_backup_that_was_never_made_or_is_too_old_is_told() {
    let host = new_host();
    host.ok("alarm update --backup-warning 0");
    assert_eq!(status(&host).0, Some(0), "there is nothing to back up");
    host.encryption_set(SET, ALL);
    let alarm = only(&host, "BackupTooOld");
    assert_eq!(alarm["severity"], "Warning");
    assert!(
        alarm["message"]
            .as_str()
            .unwrap()
            .contains("there was no backup"),
        "{alarm}"
    );
    let secret = host.path("passphrase");
    private(&secret, "a long passphrase");
    let make = format!(
        "backup create {} --passphrase-file {}",
        host.file("b.age"),
        secret.display()
    );
    host.ok(&make);
    let alarm = only(&host, "BackupTooOld");
    assert!(
        alarm["message"]
            .as_str()
            .unwrap()
            .contains("the last backup is of"),
        "{alarm}"
    );
    host.ok("alarm update --backup-warning 1d");
    let (code, view) = status(&host);
    assert_eq!(code, Some(0));
    assert!(view["lastBackup"].is_string());
    // One that was made when the clock was wrong.
    let noted = host.state().join("last-backup.json");
    let made = format!("{{\"created\":\"{}\",\"file\":\"/b.age\"}}", from_now(DAY));
    fs::write(&noted, made).unwrap();
    assert_eq!(only(&host, "ClockBehind")["severity"], "Warning");
    fs::write(&noted, "{").unwrap();
    assert_eq!(only(&host, "NotKnown")["subject"]["name"], "backup");
}

/// A file that only its owner reads.
fn private(path: &std::path::Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_lost_copy_of_a_header_is_told_before_the_other_one_is_lost_too() {
    let host = new_host();
    host.encryption_set(SET, ALL);
    host.ok("disk create d --size 1MiB --disk-encryption-set set1");
    let header = host.disks().join("d/header");
    let good = fs::read(&header).unwrap();
    let [first, second] = SLOT_OFFSETS.map(|offset| offset as usize);
    let slot = second - first;
    // Both sides, torn, and overwritten by what is no header.
    for (at, length, byte) in [
        (first, slot, 0),
        (second, slot, 0),
        (first, slot, 0x5a),
        (second + 64, 64, 0x5a),
    ] {
        let mut bytes = good.clone();
        bytes[at..at + length].fill(byte);
        fs::write(&header, bytes).unwrap();
        let alarm = only(&host, "DiskDamaged");
        assert_eq!(
            (&alarm["subject"]["name"], &alarm["severity"]),
            (&"d".into(), &"Warning".into()),
            "{at}"
        );
        assert_eq!(host.json("disk show d")["lostHeaderCopy"], true);
        host.ok("disk check d --repair");
        assert_eq!(status(&host).0, Some(0));
    }
}

#[test]
fn a_damaged_header_and_a_vault_that_is_gone_are_told_and_nothing_else_is_missed() {
    let host = new_host();
    host.encryption_set(SET, ALL);
    host.ok("disk create d --size 1MiB --disk-encryption-set set1");
    host.ok("disk create e --size 1MiB --disk-encryption-set set1");
    let header = host.disks().join("d/header");
    let length = fs::metadata(&header).unwrap().len() as usize;
    fs::write(&header, vec![0x5a; length]).unwrap();
    let alarm = only(&host, "DiskDamaged");
    assert_eq!(
        (&alarm["subject"]["name"], &alarm["severity"]),
        (&"d".into(), &"Critical".into())
    );
    fs::rename(host.state().join("vaults").join(VAULT), host.path("gone")).unwrap();
    let (code, view) = status(&host);
    assert_eq!(code, Some(2));
    let told = view["alarms"].as_array().unwrap();
    let is = |code: &str, name: &str| {
        let is = |alarm: &&Value| alarm["code"] == code && alarm["subject"]["name"] == name;
        told.iter().any(|alarm| is(&alarm))
    };
    assert!(is("DiskDamaged", "d") && is("NotKnown", VAULT), "{told:#?}");
}
