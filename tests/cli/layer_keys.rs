//! A disk whose layers are under the keys of several owners: a clone of an image of somebody else.

use std::fs;
use std::path::Path;

use disks::{CloneRequest, Disk, LayerOp, NewKey, SnapshotRequest, Unattached, clone, rewrap};
use installation::catalog::{DiskRecord, DiskState};
use installation::envelope::ResourceKind;
use test_support::{Host, KEY, VAULT, text};
use uuid::Uuid;
use vault::{KeySize, NewKey as NewVaultKey};

const ALL: &[&str] = &["get", "wrapKey", "unwrapKey"];

/// An image under the set `golden`, and a clone of it under the set `mine`.
struct Owners {
    host: Host,
    content: Vec<u8>,
    golden: Uuid,
    mine: Uuid,
}

impl Owners {
    fn new() -> Self {
        let host = Host::new();
        let raw = host.raw_image("disk.raw");
        let (golden, mine) = (
            host.encryption_set("golden", ALL),
            host.encryption_set("mine", ALL),
        );
        let create = ["disk", "create", "base", "--source", text(&raw)];
        host.ok(&[&create[..], &["--disk-encryption-set", "golden"]].concat());
        let installation = host.installation();
        let base = Disk::find(&installation, "base").unwrap();
        let claim = base.claim().unwrap();
        let snapshot = LayerOp::CreateSnapshot(SnapshotRequest {
            kind: ResourceKind::Image,
            name: "image".into(),
            incremental: false,
            data_dir: None,
        });
        let nowhere = Path::new("/dev/shm/there-is-no-such-directory");
        let mut nobody = Unattached::settled(&installation, &base, claim, nowhere).unwrap();
        snapshot.apply(&installation, &base, &mut nobody).unwrap();
        drop(nobody);
        let request = CloneRequest {
            name: "clone".into(),
            source: (ResourceKind::Image, "image".into()),
            size: None,
            disk_encryption_set: Some(Some("mine".into())),
            sector_size: None,
            data_dir: None,
        };
        clone(&installation, &request).unwrap();
        let content = fs::read(&raw).unwrap();
        Self {
            host,
            content,
            golden,
            mine,
        }
    }

    fn is_readable(&self) {
        assert!(self.host.ok(&["disk", "decrypt", "clone"]) == self.content);
    }

    /// Sets and keys of the clone's layers, from the bottom up.
    fn layers(&self) -> Vec<(Option<String>, String)> {
        let installation = self.host.installation();
        let disk = Disk::find(&installation, "clone").unwrap();
        let header = disk.header_file().unwrap().read().unwrap();
        let layers = header.claims().layers.iter();
        layers
            .map(|layer| {
                let set = layer.disk_encryption_set.clone();
                (set, layer.envelope.key_url())
            })
            .collect()
    }

    fn sets(&self) -> Vec<Option<String>> {
        self.layers().into_iter().map(|(set, _)| set).collect()
    }
}

fn set(name: &str) -> Option<String> {
    Some(name.into())
}

#[test]
fn each_layer_needs_the_key_of_its_owner() {
    let owners = Owners::new();
    let host = &owners.host;
    owners.is_readable();
    host.grant(owners.golden, &[]);
    let refused = host.refused_with("Forbidden", &["disk", "decrypt", "clone"]);
    for part in [
        "the layer",
        "the disk clone",
        "the disk base",
        KEY,
        "unwrapKey",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    host.grant(owners.golden, ALL);
    host.grant(owners.mine, &[]);
    let refused = host.refused_with("Forbidden", &["disk", "decrypt", "clone"]);
    assert!(!refused.contains("which came from"), "{refused}");
    host.grant(owners.mine, ALL);
    owners.is_readable();
}

#[test]
fn a_disk_moves_to_another_set_with_its_own_layers_only() {
    let owners = Owners::new();
    let host = &owners.host;
    assert_eq!(owners.sets(), [set("golden"), set("mine")]);
    host.encryption_set("other", ALL);
    host.ok(&["disk", "update", "clone", "--disk-encryption-set", "other"]);
    assert_eq!(owners.sets(), [set("golden"), set("other")]);
    host.ok(&["disk", "update", "clone", "--platform-managed"]);
    assert_eq!(owners.sets(), [set("golden"), None]);
    owners.is_readable();
    // The owner of the layer beneath is kept for as long as it is needed.
    let delete = ["disk-encryption-set", "delete", "golden", "--yes"];
    host.refused_with("InUseDiskEncryptionSetCannotBeDeleted", &delete);
    host.ok(&["disk-encryption-set", "delete", "mine", "--yes"]);
}

#[test]
fn a_new_key_of_a_set_wraps_its_layers_of_anybodys_disk() {
    let owners = Owners::new();
    let installation = owners.host.installation();
    let before = owners.layers();
    let vault = installation.vault(VAULT).unwrap();
    let new = NewVaultKey::new(KeySize::Rsa2048);
    vault
        .create_key(&installation.operator(), "key2", &new)
        .unwrap();
    let mut record = installation.catalog().des("golden").unwrap();
    record.record.key_url = format!("https://{VAULT}.vault.localhost/keys/key2");
    installation
        .catalog()
        .update_des(record.rev, &record.record)
        .unwrap();
    let access = installation.wrapping_key(Some("golden")).unwrap();
    let new = NewKey {
        set: Some("golden"),
        rev: None,
        access: &access,
        log: &installation.audit_log().unwrap(),
    };
    for (kind, name) in [
        (ResourceKind::Disk, "clone"),
        (ResourceKind::Image, "image"),
        (ResourceKind::Disk, "base"),
    ] {
        assert!(rewrap(&installation, kind, name, &new).unwrap(), "{name}");
        assert!(!rewrap(&installation, kind, name, &new).unwrap(), "{name}");
    }
    let after = owners.layers();
    assert!(after[0].1.contains("/keys/key2/"), "{after:?}");
    assert_eq!((&after[0].0, &after[1]), (&set("golden"), &before[1]));
    owners.is_readable();

    // It takes the disk's own key too, which authenticates the header that is written.
    owners.host.grant(owners.mine, &[]);
    let old = installation.catalog().des("golden").unwrap();
    let mut record = old.record;
    record.key_url = format!("https://{VAULT}.vault.localhost/keys/{KEY}");
    installation.catalog().update_des(old.rev, &record).unwrap();
    let access = installation.wrapping_key(Some("golden")).unwrap();
    let back = NewKey {
        access: &access,
        ..new
    };
    assert!(rewrap(&installation, ResourceKind::Disk, "clone", &back).is_err());
    assert_eq!(owners.layers(), after);
}

/// Two sets with disks, both moved to another key: nothing that is known here is under the first one, but
/// for what has left the catalog.
struct Leaving {
    owners: Owners,
    what_if: Vec<&'static str>,
}

impl Leaving {
    fn new() -> Self {
        let owners = Owners::new();
        let new_key = ["keyvault", "key", "create", "key2", "--size", "2048"];
        owners
            .host
            .ok(&[&new_key[..], &["--vault-name", VAULT]].concat());
        let what_if = ["keyvault", "key", "what-if", "--disable", KEY];
        let what_if = [&what_if[..], &["--vault-name", VAULT]].concat();
        Self { owners, what_if }
    }

    fn move_sets(&self) {
        let key2 = format!("https://{VAULT}.vault.localhost/keys/key2");
        for set in ["mine", "golden"] {
            let update = ["disk-encryption-set", "update", set, "--key-url", &key2];
            self.owners.host.ok(&update);
        }
    }

    /// The answers of `what-if` and, for the set, of `show-usage`, with the first reason.
    fn answers(&self, set: &str) -> [(String, String); 2] {
        let host = &self.owners.host;
        let usage = host.json(&["disk-encryption-set", "show-usage", set]);
        let mut usage = usage.as_array().unwrap().iter();
        let of_key = |usage: &&serde_json::Value| {
            let url = usage["keyUrl"].as_str().unwrap();
            url.ends_with(&format!("/{KEY}")) || url.contains(&format!("/{KEY}/"))
        };
        let usage = usage.find(of_key).unwrap().clone();
        [host.json(&self.what_if), usage].map(|found| {
            let reason = found["reasons"][0].as_str().unwrap_or_default();
            let answer = found["safeToDisable"].as_str().unwrap();
            (answer.into(), reason.into())
        })
    }

    fn is_unknown(&self, set: &str, because: &[&str]) {
        for (answer, reason) in self.answers(set) {
            assert_eq!(answer, "unknown", "{reason}");
            for part in because {
                assert!(reason.contains(part), "{part}: {reason}");
            }
        }
    }

    fn is_safe(&self, set: &str) {
        for (answer, reason) in self.answers(set) {
            assert_eq!(answer, "yes", "{reason}");
        }
    }
}

#[test]
fn a_key_of_a_disk_that_was_unregistered_is_not_called_safe_to_disable() {
    let leaving = Leaving::new();
    let host = &leaving.owners.host;
    let directory = host.disks().join("clone");
    let directory = text(&directory);
    host.ok(&["disk", "unregister", "clone"]);
    leaving.move_sets();
    let because = ["the disk 'clone'", "was unregistered", directory];
    leaving.is_unknown("mine", &because);
    leaving.is_unknown("golden", &because);
    // It is not gone: its header is there.
    let forget = ["catalog", "forget", "clone", "--yes"];
    let refused = host.refused_with("InvalidArgument", &forget);
    assert!(refused.contains(directory), "{refused}");
    leaving.is_unknown("mine", &because);
    // The copy of the catalog has it too.
    for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        let _ = fs::remove_file(host.state().join(name));
    }
    let away = host.path("away");
    fs::rename(directory, &away).unwrap();
    host.ok(&["catalog", "rebuild"]);
    leaving.is_unknown("mine", &because);
    // Known again, its header tells; deleted with it, nothing is left.
    host.ok(&["disk", "register", "--dir", text(&away), "--name", "again"]);
    assert_eq!(leaving.answers("mine")[0].0, "no");
    assert_eq!(
        host.json(&["catalog", "list-departed"]),
        serde_json::json!([])
    );
    host.ok(&["disk", "delete", "again", "--yes"]);
    host.ok(&["catalog", "rebuild", "--all-directories-named"]);
    leaving.is_safe("mine");
}

#[test]
fn a_key_of_what_was_deleted_without_its_header_is_not_called_safe_to_disable() {
    let leaving = Leaving::new();
    let host = &leaving.owners.host;
    let away = host.path("away");
    let directory = host.disks().join("clone");
    fs::rename(&directory, &away).unwrap();
    host.ok(&["disk", "delete", "clone", "--yes"]);
    // Of another only the header is missing.
    let header = host.disks().join("base/header");
    fs::rename(header, host.path("header")).unwrap();
    host.ok(&["disk", "delete", "base", "--yes"]);
    leaving.move_sets();
    leaving.is_unknown("mine", &["was deleted", "without its header"]);
    let vault = ["keyvault", "delete", VAULT, "--yes"];
    let used = host.refused_with("VaultInUse", &vault);
    assert!(
        used.contains("the disk 'clone', which may still exist"),
        "{used}"
    );
    // Another version of the key may wrap it: the catalog may have been behind.
    let key = ["--vault-name", VAULT, KEY];
    host.ok(&[&["keyvault", "key", "rotate"][..], &key].concat());
    let [(answer, reason), _] = leaving.answers("mine");
    assert_eq!(answer, "unknown");
    assert!(reason.contains("another version"), "{reason}");
    let departed = host.json(&["catalog", "list-departed"]);
    let departed = departed.as_array().unwrap();
    assert_eq!(departed.len(), 2);
    assert!(
        departed
            .iter()
            .all(|record| record["reason"] == "deletedUnseen")
    );
    for record in departed {
        let id = record["id"].as_str().unwrap();
        host.ok(&["catalog", "forget", id, "--yes"]);
    }
    leaving.is_safe("mine");
    host.refused_with("ResourceNotFound", &["catalog", "forget", "clone", "--yes"]);
    let log = host.run(&["audit", "list", "--installation"]);
    assert!(String::from_utf8_lossy(&log.stdout).contains("CatalogForget"));
}

#[test]
fn deleting_leaves_a_directory_that_has_another_disks_header() {
    let owners = Owners::new();
    let host = &owners.host;
    let (base, clone) = (host.disks().join("base"), host.disks().join("clone"));
    let away = host.path("away");
    let files = |directory: &Path| {
        let files = fs::read_dir(directory).unwrap().map(|file| {
            let path = file.unwrap().path();
            (path.clone(), fs::read(path).unwrap())
        });
        files.collect::<std::collections::BTreeMap<_, _>>()
    };
    // The clone was moved away, and base is where it was.
    fs::rename(&clone, &away).unwrap();
    fs::rename(&base, &clone).unwrap();
    let before = files(&clone);
    host.ok(&["disk", "delete", "clone", "--yes"]);
    assert!(before == files(&clone), "another disk's files were touched");
    // So is what a deletion that was killed has begun.
    fs::rename(&away, &base).unwrap();
    let before = files(&base);
    let installation = host.installation();
    let catalog = installation.catalog();
    let row = catalog.disk("base").unwrap();
    let record = DiskRecord {
        state: DiskState::Deleting,
        ..row.record
    };
    catalog.update_disk(row.rev, &record).unwrap();
    assert_eq!(host.json(&["disk", "list"]), serde_json::json!([]));
    assert!(before == files(&base), "another disk's files were touched");
    let departed = host.json(&["catalog", "list-departed"]);
    let departed = departed.as_array().unwrap().iter();
    let departed: Vec<_> = departed
        .map(|record| (record["name"].as_str(), record["reason"].as_str()))
        .collect();
    let unseen = Some("deletedUnseen");
    assert_eq!(departed, [(Some("base"), unseen), (Some("clone"), unseen)]);
    // The clone is whole, and can be made known where it is.
    host.ok(&["disk", "register", "--dir", text(&base)]);
    owners.is_readable();
}

#[test]
fn what_left_unseen_may_be_under_another_version_until_its_header_is_gone() {
    let leaving = Leaving::new();
    let host = &leaving.owners.host;
    let (directory, away) = (host.disks().join("clone"), host.path("away"));
    fs::rename(&directory, &away).unwrap();
    host.ok(&["disk", "unregister", "clone"]);
    leaving.move_sets();
    // The catalog may have been behind: another version of the key may wrap it.
    let key = ["--vault-name", VAULT, KEY];
    host.ok(&[&["keyvault", "key", "rotate"][..], &key].concat());
    let [(answer, reason), _] = leaving.answers("mine");
    assert_eq!(answer, "unknown", "{reason}");
    assert!(reason.contains("another version"), "{reason}");
    // It is not gone, whatever wraps it, and when its header cannot be read either.
    fs::rename(&away, &directory).unwrap();
    let forget = ["catalog", "forget", "clone", "--yes"];
    host.refused_with("InvalidArgument", &forget);
    let header = fs::read(directory.join("header")).unwrap();
    fs::write(directory.join("header"), &header[1..]).unwrap();
    let refused = host.refused_with("InvalidArgument", &forget);
    assert!(refused.contains("cannot be read"), "{refused}");
    fs::write(directory.join("header"), &header).unwrap();
    // A copy that is known says nothing of the original.
    std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700)
        .create(&away)
        .unwrap();
    for file in fs::read_dir(&directory).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), away.join(file.file_name())).unwrap();
    }
    host.ok(&["disk", "register", "--dir", text(&away)]);
    host.ok(&["disk", "delete", "clone", "--yes"]);
    assert_eq!(leaving.answers("mine")[0].0, "unknown");
    fs::remove_dir_all(&directory).unwrap();
    host.ok(&forget);
    leaving.is_safe("mine");
}

#[test]
fn a_key_that_is_gone_for_good_is_needed_by_nothing() {
    let leaving = Leaving::new();
    let host = &leaving.owners.host;
    host.ok(&["disk", "unregister", "clone"]);
    leaving.move_sets();
    let key = ["--vault-name", VAULT, KEY];
    host.ok(&[&["keyvault", "key", "delete", "--yes"][..], &key].concat());
    let usage = || {
        let usage = host.json(&["disk-encryption-set", "show-usage", "mine"]);
        let mut usage = usage.as_array().unwrap().clone().into_iter();
        usage.find(|usage| usage["active"] == false).unwrap()["safeToDisable"].clone()
    };
    assert_eq!(usage(), "unknown", "it can be recovered");
    host.ok(&[&["keyvault", "key", "purge", "--yes"][..], &key].concat());
    assert_eq!(usage(), "yes");
}

#[test]
fn what_if_without_a_version_names_the_other_versions_that_are_in_use() {
    let owners = Owners::new();
    let host = &owners.host;
    let key = ["--vault-name", VAULT, KEY];
    host.ok(&[&["keyvault", "key", "rotate"][..], &key].concat());
    let (old, _) = owners.layers().pop().map(|(set, url)| (url, set)).unwrap();
    let what_if = [
        "keyvault",
        "key",
        "what-if",
        "--vault-name",
        VAULT,
        "--disable",
        KEY,
    ];
    let effect = host.json(&what_if);
    assert_ne!(effect["keyUrl"], old.as_str());
    let others = effect["otherVersionsInUse"].as_array().unwrap();
    assert_eq!(others.len(), 1, "{effect}");
    assert_eq!(others[0]["keyUrl"], old.as_str());
    assert_eq!(others[0]["safeToDisable"], "no");
    let said = host.run(&what_if);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(
        said.contains(&format!("{old} stays as it is, and is in use")),
        "{said}"
    );
    let version = old.rsplit('/').next().unwrap();
    let effect = host.json(&[&what_if[..], &["--version", version]].concat());
    assert_eq!(effect["keyUrl"], old.as_str());
    assert_eq!(effect["otherVersionsInUse"], serde_json::Value::Null);
}

#[test]
fn what_the_catalog_knows_counts_where_a_header_cannot_be_read() {
    let owners = Owners::new();
    let host = &owners.host;
    let new_key = ["keyvault", "key", "create", "key2", "--size", "2048"];
    host.ok(&[&new_key[..], &["--vault-name", VAULT]].concat());
    let key2 = format!("https://{VAULT}.vault.localhost/keys/key2");
    let to_key2 = |set| ["disk-encryption-set", "update", set, "--key-url", &key2];
    host.ok(&to_key2("mine"));
    // The clone's own layer is under another key now than the one that it shared with the image.
    let what_if = ["keyvault", "key", "what-if", "--disable", KEY];
    let what_if = [&what_if[..], &["--vault-name", VAULT]].concat();
    let effect = host.json(&what_if);
    let needs = |effect: &serde_json::Value, name: &str| {
        let resources = effect["resources"].as_array().unwrap();
        resources.iter().any(|resource| resource["name"] == name)
    };
    assert!(
        needs(&effect, "clone") && needs(&effect, "image"),
        "{effect}"
    );

    let directory = host.disks().join("clone");
    let away = host.path("away");
    fs::rename(&directory, &away).unwrap();
    // It cannot be wrapped anew, but the set needs the old key no more.
    assert!(!host.run(&to_key2("golden")).status.success());
    let effect = host.json(&what_if);
    assert_eq!(effect["diskEncryptionSets"], serde_json::json!([]));
    assert_eq!(effect["safeToDisable"], "no", "{effect}");
    assert!(
        needs(&effect, "clone") && !needs(&effect, "image"),
        "{effect}"
    );
    let reason = effect["reasons"][0].as_str().unwrap();
    assert!(
        reason.contains("the disk 'clone' by the catalog"),
        "{reason}"
    );
    let usage = host.json(&["disk-encryption-set", "show-usage", "golden"]);
    let of_key = usage.as_array().unwrap().iter();
    let mut of_key = of_key.filter(|usage| usage["keyUrl"].as_str().unwrap().contains("/key1/"));
    assert_eq!(of_key.next().unwrap()["safeToDisable"], "no", "{usage}");

    // Of another version of the key it is not known: the catalog may be behind the header.
    let key = ["--vault-name", VAULT, KEY];
    host.ok(&[&["keyvault", "key", "rotate"][..], &key].concat());
    let effect = host.json(&what_if);
    assert_eq!(effect["safeToDisable"], "unknown", "{effect}");
    let reason = effect["reasons"][0].as_str().unwrap();
    assert!(reason.contains("under another version"), "{reason}");

    // Nobody is held up who disables it all the same, and nobody is not told.
    let disable = [
        "keyvault",
        "key",
        "set-attributes",
        KEY,
        "--vault-name",
        VAULT,
    ];
    let output = host.run(&[&disable[..], &["--enabled", "false"]].concat());
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("warning: is it safe") && said.contains("'clone'"),
        "{said}"
    );
    let output = host.run(&[&disable[..], &["--enabled", "false", "--yes"]].concat());
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    fs::rename(&away, &directory).unwrap();
}
