//! Disk encryption sets as their callers see them.

use super::*;
use crate::import::Cancel;
use installation::catalog::{
    DesIdentity, DiskEncryptionSetRecord, DiskRecord, DiskState, EncryptionType,
};
use installation::envelope::ResourceKind;
use installation::{Installation, InstallationError};
use test_support::seccomp::with_failing_syncs;
use vault::{AttributeChange, KeySize, NewKey, Permissions, VaultErrorCode, VaultSettings};

struct Fixture {
    _dir: tempfile::TempDir,
    installation: Installation,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(dir.path()).unwrap();
        let vault = installation
            .create_vault("myvault", &VaultSettings::default())
            .unwrap();
        for key in ["k", "l"] {
            vault
                .create_key(
                    &installation.operator(),
                    key,
                    &NewKey::new(KeySize::Rsa2048),
                )
                .unwrap();
        }
        Self {
            _dir: dir,
            installation,
        }
    }

    fn create(&self, key_url: &str, source_vault: Option<&str>) -> Result<(), InstallationError> {
        let new = NewDes {
            name: "set",
            key_url,
            source_vault,
            encryption_type: EncryptionType::default(),
            auto_rotation: false,
            identity: None,
        };
        create(&self.installation, &new).map(drop)
    }
}

fn url(key: &str) -> String {
    format!("https://myvault.vault.localhost/keys/{key}")
}

#[test]
fn its_identity_wraps_only_once_it_may() {
    let fixture = Fixture::new();
    fixture.create(&url("k"), Some("MyVault")).unwrap();
    let installation = &fixture.installation;
    let error = installation.wrapping_key(Some("set")).err().unwrap();
    let id = installation.identity(Some("set")).unwrap().object_id;
    let command =
        format!("set-policy myvault --object-id {id} --key-permissions get wrapKey unwrapKey");
    assert!(error.to_string().contains(&command), "{error}");
    let vault = installation.vault("myvault").unwrap();
    vault
        .set_policy(&installation.operator(), id, &Permissions::for_disks())
        .unwrap();
    let access = installation.wrapping_key(Some("set")).unwrap();
    assert_eq!(access.key.name, "k");
    assert_eq!(access.key.version.map(|v| v.len()), Some(32));

    let deleted = delete(installation, "set").unwrap();
    assert_eq!(deleted.principal_id, id);
    assert_eq!(deleted.vaults_with_policy, ["myvault"]);
    assert!(installation.wrapping_key(Some("set")).is_err());
}

#[test]
fn a_key_that_is_not_there_or_elsewhere_is_refused() {
    let fixture = Fixture::new();
    for (key_url, source, why) in [
        (url("none"), None, "no key 'none'"),
        (
            format!("{}/{}", url("k"), "0".repeat(32)),
            None,
            "no version",
        ),
        (
            "https://other.vault.localhost/keys/k".into(),
            None,
            "no key vault named 'other'",
        ),
        (
            "https://v.example.net/keys/k".into(),
            None,
            "keyvault connect",
        ),
        ("k".into(), None, "no key URL"),
        (url("k"), Some("other"), "not in the key vault 'other'"),
    ] {
        let error = fixture.create(&key_url, source).unwrap_err();
        assert!(error.to_string().contains(why), "{error} for {why}");
    }
    assert!(fixture.installation.catalog().all_des().unwrap().is_empty());
}

#[test]
fn a_new_key_makes_the_old_one_a_previous_one() {
    let fixture = Fixture::new();
    fixture.create(&url("k"), None).unwrap();
    let installation = &fixture.installation;
    let change = |key: &str| {
        let url = url(key);
        let change = DesChange {
            key_url: Some(&url),
            ..DesChange::default()
        };
        update(installation, "set", &change).unwrap()
    };
    assert_eq!(change("k").record.last_rotation, None, "nothing changed");
    let set = change("l").record;
    assert!(set.last_rotation.is_some());
    assert_eq!(set.key_url, url("l"));
    assert_eq!(set.previous_keys, [url("k")]);
    assert_eq!(change("k").record.previous_keys, [url("l")]);
}

#[test]
fn a_new_key_wraps_the_sets_disks_or_nothing_changes() {
    let fixture = Fixture::new();
    let installation = &fixture.installation;
    fixture.create(&url("k"), None).unwrap();
    let vault = installation.vault("myvault").unwrap();
    let operator = installation.operator();
    let id = installation.identity(Some("set")).unwrap().object_id;
    let allow = |permissions: &str| {
        let permissions = permissions.parse().unwrap();
        vault.set_policy(&operator, id, &permissions).unwrap();
    };
    allow("get wrapKey unwrapKey");
    let request = crate::CreateRequest {
        name: "disk".into(),
        size: Some(1 << 20),
        source: None,
        disk_encryption_set: Some("set".into()),
        sector_size: 4096,
        logical_sector_size: None,
        data_dir: None,
    };
    crate::create(installation, &request, &Cancel::default(), |_| |_| ()).unwrap();
    let url = url("l");
    let change = DesChange {
        key_url: Some(&url),
        ..DesChange::default()
    };
    let before = installation.catalog().des("set").unwrap();
    allow("get wrapKey");
    let error = update(installation, "set", &change).err().unwrap();
    assert!(error.to_string().contains("'unwrapKey'"), "{error}");
    assert_eq!(installation.catalog().des("set").unwrap(), before);

    allow("get wrapKey unwrapKey");
    let enable = |key: &str, enabled| {
        let key = vault::KeyId {
            name: key.into(),
            version: None,
        };
        let enabled = AttributeChange {
            enabled: Some(enabled),
            ..AttributeChange::default()
        };
        vault.update_key(&operator, &key, &enabled.into()).unwrap();
    };
    enable("k", false);
    let updated = update(installation, "set", &change).unwrap();
    assert_eq!(updated.left.len(), 1, "the old key refuses");
    enable("k", true);
    let updated = update(installation, "set", &change).unwrap();
    assert_eq!(updated.rewrapped, [(ResourceKind::Disk, "disk".into())]);
    let disk = installation.catalog().disk("disk").unwrap().record;
    assert!(disk.key_url.starts_with(&url), "{}", disk.key_url);
    let updated = update(installation, "set", &change).unwrap();
    assert!(updated.rewrapped.is_empty() && updated.left.is_empty());

    let error = delete(installation, "set").err().unwrap();
    assert!(error.to_string().contains("'disk'"), "{error}");
}

/// The page cache has the new wrapping, and storage may have the old one only.
#[test]
fn a_rotation_is_not_done_while_headers_cannot_be_synced() {
    let fixture = Fixture::new();
    let installation = &fixture.installation;
    fixture.create(&url("k"), None).unwrap();
    let vault = installation.vault("myvault").unwrap();
    let id = installation.identity(Some("set")).unwrap().object_id;
    let operator = installation.operator();
    vault
        .set_policy(&operator, id, &Permissions::for_disks())
        .unwrap();
    let request = crate::CreateRequest {
        name: "disk".into(),
        size: Some(1 << 20),
        source: None,
        disk_encryption_set: Some("set".into()),
        sector_size: 4096,
        logical_sector_size: None,
        data_dir: None,
    };
    crate::create(installation, &request, &Cancel::default(), |_| |_| ()).unwrap();
    let (old, new) = (url("k"), url("l"));
    let to_new = || {
        let change = DesChange {
            key_url: Some(&new),
            ..DesChange::default()
        };
        update(installation, "set", &change).unwrap()
    };
    let is_safe = || {
        let key = vault::KeyId {
            name: "k".into(),
            version: None,
        };
        let asked = what_if_disabled(installation, "myvault", &key).unwrap();
        let asked = asked.safety;
        let seen = Dependencies::look(installation).unwrap();
        let seen = seen.without(installation, &Loss::Key(old.clone())).unwrap();
        let both = [asked.safe_to_disable, seen.safety.safe_to_disable];
        both.map(|answer| answer != SafeToDisable::No)
    };
    assert_eq!(is_safe(), [false, false]);
    with_failing_syncs("header", |syncs| {
        // That of the header as it was, which is synced again before anything else.
        syncs.allow(1);
        assert_eq!(to_new().left.len(), 1);
        assert_eq!(is_safe(), [false, false]);
        let again = to_new();
        assert_eq!(again.left.len(), 1, "nothing is left to be done");
        assert_eq!(is_safe(), [false, false]);
        syncs.allow_all();
        assert!(to_new().left.is_empty());
    });
    assert_eq!(is_safe(), [true, true]);
    let disk = installation.catalog().disk("disk").unwrap().record;
    assert!(
        disk.layers
            .iter()
            .all(|used| used.key_url.starts_with(&new))
    );
}

#[test]
fn a_removed_identity_is_refused_and_a_new_one_is_another() {
    let fixture = Fixture::new();
    fixture.create(&url("k"), None).unwrap();
    let installation = &fixture.installation;
    let before = installation.identity(Some("set")).unwrap().object_id;
    let token_identity = installation.catalog().identity_of_des("set").unwrap();
    assert_eq!(token_identity.record.object_id, before);

    assert!(assign_identity(installation, "set", None).is_err());
    let removed = remove_identity(installation, "set").unwrap();
    assert_eq!(removed.principal_id, before);
    assert!(remove_identity(installation, "set").is_err());
    let InstallationError::Vault(error) = installation.wrapping_key(Some("set")).err().unwrap()
    else {
        panic!("not a refusal");
    };
    assert_eq!(error.code, VaultErrorCode::Unauthorized);
    assert!(error.message.contains("identity assign set"), "{error}");
    // The token service knows it no more, and gives no other one out.
    let known = installation.catalog().identity_by_object(before).unwrap();
    assert_eq!(known, None);
    assert!(installation.catalog().identity_of_des("set").is_err());

    let set = assign_identity(installation, "set", None).unwrap();
    assert_eq!(set.identity, DesIdentity::SystemAssigned);
    assert_ne!(set.principal_id, before);
    let token_identity = installation.catalog().identity_of_des("set").unwrap();
    assert_eq!(token_identity.record.object_id, set.principal_id);
}

#[test]
fn what_a_loss_would_stop_is_told_without_opening_a_vault() {
    let fixture = Fixture::new();
    let installation = &fixture.installation;
    fixture.create(&url("k"), None).unwrap();
    let id = installation.identity(Some("set")).unwrap().object_id;
    let vault = installation.vault("myvault").unwrap();
    let operator = installation.operator();
    vault
        .set_policy(&operator, id, &Permissions::for_disks())
        .unwrap();
    for (name, set) in [("one", Some("set")), ("two", Some("set")), ("other", None)] {
        let request = crate::CreateRequest {
            name: name.into(),
            size: Some(1 << 20),
            source: None,
            disk_encryption_set: set.map(Into::into),
            sector_size: 4096,
            logical_sector_size: None,
            data_dir: None,
        };
        crate::create(installation, &request, &Cancel::default(), |_| |_| ()).unwrap();
    }
    let empty = installation.create_vault("empty", &VaultSettings::default());
    drop((vault, empty.unwrap()));
    // Whoever only looks does without these.
    for vault in ["myvault", "platform"] {
        let key = installation.vaults_dir().join(vault).join("master.key");
        std::fs::remove_file(key).unwrap();
    }
    let seen = Dependencies::look(installation).unwrap();
    let stops = |loss: Loss| {
        let cut = seen.without(installation, &loss).unwrap();
        let names = cut.resources.iter().map(|user| user.name.clone());
        let names: Vec<_> = names.collect();
        (names, cut.disk_encryption_sets, cut.safety.safe_to_disable)
    };
    let of_set = (
        vec!["one".to_owned(), "two".into()],
        vec!["set".to_owned()],
        SafeToDisable::No,
    );
    assert_eq!(stops(Loss::Key(url("k"))), of_set);
    let version = &seen.sets[0].active_key;
    assert!(version.starts_with(&url("k")) && version.len() > url("k").len());
    assert_eq!(stops(Loss::Key(version.clone())), of_set);
    assert_eq!(stops(Loss::Vault("myvault".into())), of_set);
    assert_eq!(stops(Loss::Identity(id)), of_set);
    let platform = installation.platform().object_id;
    for loss in [Loss::Identity(platform), Loss::Vault("platform".into())] {
        let of_platform = (vec!["other".to_owned()], Vec::new(), SafeToDisable::No);
        assert_eq!(stops(loss), of_platform);
    }
    let nothing = (Vec::new(), Vec::new(), SafeToDisable::Yes);
    assert_eq!(stops(Loss::Key(url("l"))), nothing);
    assert_eq!(stops(Loss::Vault("empty".into())), nothing);
    // What is not there, a name that was mistaken perhaps, is not called safe.
    let unknown = (Vec::new(), Vec::new(), SafeToDisable::Unknown);
    let no_version = format!("{}/{}", url("k"), "0".repeat(32));
    for loss in [
        Loss::Key(url("none")),
        Loss::Key(no_version),
        Loss::Vault("none".into()),
        Loss::Identity(uuid::Uuid::nil()),
    ] {
        assert_eq!(stops(loss.clone()), unknown, "{loss:?}");
    }
    // What cannot be read is no reason to call anything safe.
    for vault in ["myvault", "empty"] {
        let database = installation.vaults_dir().join(vault).join("vault.db");
        std::fs::write(&database, "no database").unwrap();
    }
    let blind = Dependencies::look(installation).unwrap();
    assert!(blind.vaults[0].problem.is_some());
    let cut = blind.without(installation, &Loss::Key(url("l"))).unwrap();
    assert_eq!(cut.safety.safe_to_disable, SafeToDisable::Unknown);
    let cut = blind.without(installation, &Loss::Vault("empty".into()));
    assert_eq!(cut.unwrap().safety.safe_to_disable, SafeToDisable::Unknown);
}

#[test]
fn a_set_that_follows_its_key_tells_the_version_that_wraps() {
    let fixture = Fixture::new();
    fixture.create(&url("k"), None).unwrap();
    let catalog = fixture.installation.catalog();
    let mut set = catalog.des("set").unwrap().record;
    let [old, new, other] = ["1", "2", "3"].map(|n| format!("{}/{}", url("k"), n.repeat(32)));
    let active = |set: &DiskEncryptionSetRecord| active_key(&fixture.installation, set).unwrap();
    let add = |name: &str, key_url: &str| {
        let disk = DiskRecord {
            id: uuid::Uuid::new_v4(),
            kind: ResourceKind::Disk,
            name: name.into(),
            directory: format!("/nowhere/{name}").into(),
            size: 1 << 30,
            disk_encryption_set: Some("set".into()),
            key_url: key_url.into(),
            layers: Vec::new(),
            created: time::OffsetDateTime::UNIX_EPOCH,
            state: DiskState::Ready,
        };
        catalog.insert_disk(&disk).unwrap();
    };
    set.auto_rotation = true;
    assert_eq!(active(&set), url("k"), "nothing is under it");
    add("d1", &new);
    assert_eq!(active(&set), new);
    // What is left under an older one is not what the set uses.
    set.key_url.clone_from(&old);
    set.previous_keys = vec![old.clone()];
    add("d2", &old);
    assert_eq!(active(&set), new);
    add("d3", &other);
    assert_eq!(active(&set), old, "one of two");
    set.auto_rotation = false;
    set.key_url.clone_from(&new);
    assert_eq!(active(&set), new);
}
