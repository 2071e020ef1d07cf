//! Rotation of a disk encryption set with many disks, also when it is cut off.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use disks::import::Cancel;
use disks::{self, CreateRequest, Disk, NewKey};
use installation::Installation;
use installation::envelope::ResourceKind;
use rustix::process::{Pid, Signal, kill_process};
use test_support::{Host, KEY, VAULT};

const ALL: &[&str] = &["get", "wrapKey", "unwrapKey"];
const SET: &str = "set1";

/// A host with `count` disks of one set, which follows its key.
fn host_with_disks(count: u32) -> Host {
    let host = Host::new();
    host.encryption_set(SET, ALL);
    let follow = ["--enable-auto-key-rotation", "true"];
    host.ok(&[&["disk-encryption-set", "update", SET], &follow[..]].concat());
    let installation = host.installation();
    let next = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    create(&installation, &format!("disk{index}"));
                }
            });
        }
    });
    host
}

fn create(installation: &Installation, name: &str) {
    let request = CreateRequest {
        name: name.into(),
        size: Some(1 << 20),
        source: None,
        disk_encryption_set: Some(SET.into()),
        sector_size: 4096,
        logical_sector_size: None,
        data_dir: None,
    };
    disks::create(installation, &request, &Cancel::default(), |_| |_| ()).unwrap();
}

fn new_version(host: &Host) {
    host.ok(&[
        "keyvault",
        "key",
        "create",
        KEY,
        "--vault-name",
        VAULT,
        "--size",
        "2048",
    ]);
}

/// Opens every disk with what its header says; the key versions that do it.
fn open_all(host: &Host) -> BTreeSet<String> {
    let installation = host.installation();
    let rows = installation.catalog().disks().unwrap();
    let open = |name: &str| {
        let disk = Disk::find(&installation, name).unwrap();
        let header = disk.header_file().unwrap().read().unwrap();
        let (header, _) = disk.unlock(&installation, header).unwrap();
        header.top().unwrap().envelope.key_url()
    };
    rows.iter().map(|row| open(&row.record.name)).collect()
}

/// Rotates `count` disks, killed at `kills` random moments before it is let through.
fn rotate_with_kills(count: u32, kills: u32) {
    let host = host_with_disks(count);
    let first = open_all(&host);
    assert_eq!(first.len(), 1);
    new_version(&host);

    // How long it takes, so that the kills meet it at work.
    let whole = Instant::now();
    host.ok(&["disk-encryption-set", "rotate", SET]);
    let whole = whole.elapsed();
    eprintln!("{count} disks in {whole:?}");
    let second = open_all(&host);
    assert_eq!(second.len(), 1);
    assert_ne!(first, second);

    let (mut seen_both, mut random) = (0, std::process::id());
    for _ in 0..kills {
        new_version(&host);
        let mut child = host
            .command(&["disk-encryption-set", "rotate"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(whole.mul_f64(f64::from(random >> 8) / f64::from(1 << 24)));
        child.kill().unwrap();
        child.wait().unwrap();
        seen_both += u32::from(open_all(&host).len() > 1);
    }
    eprintln!("{seen_both} of {kills} kills left disks under both versions");
    assert!(
        kills == 0 || seen_both > 0,
        "no kill met the rotation at work"
    );
    host.ok(&["disk-encryption-set", "rotate"]);
    assert_eq!(open_all(&host).len(), 1);
    assert_eq!(
        host.json(&["disk-encryption-set", "rotate"]),
        serde_json::json!([])
    );
}

#[test]
fn a_rotation_that_is_killed_leaves_every_disk_openable_and_goes_on() {
    rotate_with_kills(48, 10);
}

#[test]
#[ignore = "takes minutes: scripts/test --full"]
fn a_thousand_disks() {
    rotate_with_kills(1000, 10);
}

#[test]
fn it_is_shown_which_version_wraps_what_and_which_is_safe_to_disable() {
    let host = host_with_disks(2);
    let old = open_all(&host).pop_first().unwrap();
    let usage = || host.json(&["disk-encryption-set", "show-usage", SET]);
    assert_eq!(usage()[0]["active"], true);
    new_version(&host);

    // The new version is the active one, the old one still wraps the disks.
    let before = usage();
    assert_eq!(before.as_array().unwrap().len(), 2, "{before}");
    assert_eq!(before[0]["resources"], serde_json::json!([]));
    assert_eq!(before[1]["keyUrl"], *old);
    assert_eq!(before[1]["safeToDisable"], "no", "{before}");
    assert_eq!(before[1]["reasons"][0], "it wraps the disk 'disk0'");
    assert_eq!(before[0]["safeToDisable"], "no", "{before}");
    assert_eq!(before[1]["resources"][0]["name"], "disk0");
    let version = old.rsplit('/').next().unwrap();
    let what_if = [
        "keyvault",
        "key",
        "what-if",
        "--disable",
        KEY,
        "--vault-name",
        VAULT,
    ];
    let old_version = [&what_if[..], &["--version", version]].concat();
    let effect = host.json(&old_version);
    assert_eq!(effect["resources"].as_array().unwrap().len(), 2, "{effect}");
    assert_eq!(effect["diskEncryptionSets"], serde_json::json!([]));
    let effect = host.json(&what_if);
    assert_eq!(effect["diskEncryptionSets"], serde_json::json!([SET]));

    host.ok(&["disk-encryption-set", "rotate"]);
    let after = usage();
    assert_eq!(
        after[0]["resources"].as_array().unwrap().len(),
        2,
        "{after}"
    );
    assert_eq!(after[1]["keyUrl"], *old);
    assert_eq!(after[1]["safeToDisable"], "yes", "{after}");
    assert_eq!(after[1]["reasons"], serde_json::json!([]));
    assert_eq!(host.json(&old_version)["safeToDisable"], "yes");
    assert_eq!(host.json(&old_version)["resources"], serde_json::json!([]));
    let set = host.json(&["disk-encryption-set", "show", SET]);
    assert_eq!(set["previousKeys"][0]["keyUrl"], *old);
    assert!(set["lastKeyRotationTimestamp"].is_string(), "{set}");
}

#[test]
fn a_disk_that_was_moved_to_another_set_meanwhile_stays_there() {
    let host = host_with_disks(1);
    let installation = host.installation();
    let access = installation.wrapping_key(Some(SET)).unwrap();
    host.ok(&["disk", "update", "disk0", "--platform-managed"]);
    let new = NewKey {
        set: Some(SET),
        rev: None,
        access: &access,
        log: &installation.audit_log().unwrap(),
    };
    assert!(!disks::rewrap(&installation, ResourceKind::Disk, "disk0", &new).unwrap());
    let show = host.json(&["disk", "show", "disk0"]);
    assert_eq!(
        show["encryption"]["type"],
        "EncryptionAtRestWithPlatformKey"
    );
}

/// A command that is held up, here by a signal, goes on after a later one is through.
#[test]
fn a_change_of_the_key_that_was_held_up_does_not_undo_a_later_one() {
    let host = Host::new();
    host.encryption_set(SET, ALL);
    for key in ["older", "newer"] {
        host.ok(&[
            "keyvault",
            "key",
            "create",
            key,
            "--vault-name",
            VAULT,
            "--size",
            "2048",
        ]);
    }
    let installation = host.installation();
    create(&installation, "disk0");
    let disk = Disk::find(&installation, "disk0").unwrap();
    let file = disk.header_file().unwrap();
    let lock = file.lock().unwrap();
    let change = |key: &str| {
        let url = format!("https://{VAULT}.vault.localhost/keys/{key}");
        let words = ["disk-encryption-set", "update", SET, "--key-url", &url];
        let mut command = host.command(&words);
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while installation.catalog().des(SET).unwrap().record.key_url != url {
            assert!(Instant::now() < end, "the set does not get the key {key}");
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    };
    let older = change("older");
    // It waits for the header now, with nothing locked.
    std::thread::sleep(Duration::from_secs(1));
    kill_process(Pid::from_child(&older), Signal::STOP).unwrap();
    let newer = change("newer");
    drop(lock);
    let done = newer.wait_with_output().unwrap();
    kill_process(Pid::from_child(&older), Signal::CONT).unwrap();
    assert!(done.status.success(), "{done:?}");
    let overtaken = older.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&overtaken.stderr).into_owned();
    assert!(
        !overtaken.status.success(),
        "it says that it has changed the key"
    );
    assert!(said.contains("was changed by someone else"), "{said}");
    let keys = open_all(&host);
    assert!(
        keys.iter().all(|url| url.contains("/keys/newer/")),
        "{keys:?}"
    );
}

#[test]
fn a_set_that_does_not_follow_its_key_says_how_it_could() {
    let host = Host::new();
    host.encryption_set(SET, ALL);
    let said = host.refused(&["disk-encryption-set", "rotate", SET]);
    assert!(said.contains("--enable-auto-key-rotation"), "{said}");
}

#[test]
fn a_served_vault_makes_the_sets_follow_and_all_of_it_is_on_record() {
    let host = host_with_disks(3);
    let old = open_all(&host);
    new_version(&host);
    let mut server = host
        .command(&["keyvault", "serve", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let followed = loop {
        let now = open_all(&host);
        if (now.len() == 1 && now != old) || Instant::now() > deadline {
            break now != old;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
    assert!(server.wait().unwrap().success());
    assert!(followed, "the server let the disks be");

    let log = host.ok(&["audit", "list", "--installation", "-o", "json"]);
    let log: Vec<serde_json::Value> = serde_json::Deserializer::from_slice(&log)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let count = |operation: &str| log.iter().filter(|r| r["operation"] == operation).count();
    assert_eq!(count("DiskRewrap"), 3, "{log:?}");
    assert!(count("DiskEncryptionSetUpdate") >= 1, "{log:?}");
    host.ok(&["audit", "verify"]);
}
