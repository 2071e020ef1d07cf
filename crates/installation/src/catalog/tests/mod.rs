use database::{Row, Value};
use time::OffsetDateTime;
use uuid::Uuid;

mod names;
mod server;

use super::contract::on_each;
use super::*;
use crate::envelope::ResourceKind;

fn des(name: &str) -> DiskEncryptionSetRecord {
    DiskEncryptionSetRecord {
        name: name.into(),
        identity: DesIdentity::SystemAssigned,
        principal_id: Uuid::new_v4(),
        key_url: "https://v.vault.localhost/keys/k".into(),
        encryption_type: EncryptionType::default(),
        previous_keys: vec!["https://v.vault.localhost/keys/old/1".into()],
        auto_rotation: true,
        last_rotation: Some(OffsetDateTime::UNIX_EPOCH),
        created: OffsetDateTime::now_utc(),
    }
}

fn disk(name: &str, des: Option<&str>) -> DiskRecord {
    use std::os::unix::ffi::OsStringExt;
    DiskRecord {
        id: Uuid::new_v4(),
        kind: ResourceKind::Disk,
        name: name.into(),
        directory: std::ffi::OsString::from_vec(b"/data/not-utf8-\xff".to_vec()).into(),
        size: 10 << 30,
        disk_encryption_set: des.map(Into::into),
        key_url: "https://v.vault.localhost/keys/k/0123".into(),
        layers: vec![LayerUse {
            layer: Uuid::new_v4(),
            disk_encryption_set: des.map(Into::into),
            key_url: "https://v.vault.localhost/keys/k/0123".into(),
        }],
        created: OffsetDateTime::now_utc(),
        state: DiskState::Creating,
    }
}

#[test]
fn records_come_back_as_they_were_stored() {
    on_each(|place| {
        let (set, first) = (des("set"), disk("first", Some("set")));
        let vault = VaultRecord {
            name: "v".into(),
            url: "https://v.vault.localhost".into(),
            kind: VaultKind::Embedded,
            created: OffsetDateTime::now_utc(),
        };
        let installation = {
            let catalog = place.catalog();
            catalog.insert_vault(&vault).unwrap();
            catalog.insert_des(&set).unwrap();
            catalog.insert_disk(&first).unwrap();
            catalog.insert_disk(&disk("second", None)).unwrap();
            catalog.installation().unwrap()
        };
        let catalog = place.catalog();
        assert_eq!(catalog.installation().unwrap(), installation);
        assert_ne!(installation.operator, installation.platform);
        assert_eq!(catalog.vault("v").unwrap().record, vault);
        assert_eq!(catalog.vaults().unwrap().len(), 1);
        assert_eq!(catalog.des("set").unwrap().record, set);
        assert_eq!(catalog.all_des().unwrap().len(), 1);
        assert_eq!(catalog.disk("first").unwrap().record, first);
        assert_eq!(catalog.disks().unwrap().len(), 2);
        let names = |des| {
            let disks = catalog.resources_under(des).unwrap();
            disks.into_iter().map(|d| d.record.name).collect::<Vec<_>>()
        };
        assert_eq!(names(Some("set")), ["first"]);
        assert_eq!(names(None), ["second"]);
    });
}

#[test]
fn an_update_of_an_old_revision_is_refused_and_changes_nothing() {
    on_each(|place| {
        let (mine, theirs) = (place.catalog(), place.catalog());
        mine.insert_disk(&disk("d", None)).unwrap();
        let Stored { rev, mut record } = mine.disk("d").unwrap();
        record.state = DiskState::Ready;
        let newer = theirs.update_disk(rev, &record).unwrap();
        record.size = 512;
        let refused = mine.update_disk(rev, &record).unwrap_err();
        assert!(matches!(refused, CatalogError::Changed { .. }));
        let refused = mine.delete_disk(&record, rev).unwrap_err();
        assert!(matches!(refused, CatalogError::Changed { .. }));
        let now = mine.disk("d").unwrap();
        assert_eq!((now.rev, now.record.size), (newer, 10 << 30));
        mine.delete_disk(&record, newer).unwrap();
        let refused = theirs.update_disk(newer, &record).unwrap_err();
        assert!(matches!(refused, CatalogError::NotFound { .. }));

        mine.insert_des(&des("s")).unwrap();
        let Stored { rev, record } = mine.des("s").unwrap();
        theirs.update_des(rev, &record).unwrap();
        let refused = mine.update_des(rev, &record).unwrap_err();
        assert!(matches!(refused, CatalogError::Changed { .. }));
        let refused = mine.delete_des("s", rev).unwrap_err();
        assert!(matches!(refused, CatalogError::Changed { .. }));
    });
}

#[test]
fn a_taken_name_is_refused() {
    on_each(|place| {
        let catalog = place.catalog();
        catalog.insert_des(&des("s")).unwrap();
        let error = catalog.insert_des(&des("s")).unwrap_err();
        assert!(matches!(error, CatalogError::Exists { .. }));
        catalog.insert_disk(&disk("a", None)).unwrap();
        let error = catalog.insert_disk(&disk("a", None)).unwrap_err();
        assert!(matches!(error, CatalogError::Exists { .. }));
        let rev = catalog.insert_disk(&disk("b", None)).unwrap();
        let mut renamed = catalog.disk("b").unwrap().record;
        renamed.name = "a".into();
        let error = catalog.update_disk(rev, &renamed).unwrap_err();
        assert!(matches!(error, CatalogError::Exists { .. }));
    });
}

#[test]
fn a_set_that_disks_use_stays_and_a_disk_needs_its_set() {
    on_each(|place| {
        let catalog = place.catalog();
        let error = catalog.insert_disk(&disk("d", Some("none"))).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("no disk encryption set named 'none'"),
            "{error}"
        );
        catalog.insert_des(&des("s")).unwrap();
        catalog.insert_disk(&disk("d", Some("s"))).unwrap();
        let rev = catalog.des("s").unwrap().rev;
        let error = catalog.delete_des("s", rev).unwrap_err();
        assert!(
            matches!(error, CatalogError::InUse { count: 1, .. }),
            "{error}"
        );
        let disk = catalog.disk("d").unwrap();
        catalog.delete_disk(&disk.record, disk.rev).unwrap();
        catalog.delete_des("s", rev).unwrap();
        let error = catalog.des("s").unwrap_err();
        assert!(matches!(error, CatalogError::NotFound { .. }));
    });
}

fn https(name: &str, url: &str) -> VaultRecord {
    VaultRecord {
        name: name.into(),
        url: url.into(),
        kind: VaultKind::Https {
            token_endpoint: None,
            ca: Some("-----BEGIN".into()),
        },
        created: OffsetDateTime::now_utc(),
    }
}

#[test]
fn every_kind_of_vault_and_identity_comes_back_as_it_was_stored() {
    on_each(|place| {
        let catalog = place.catalog();
        let hsm = VaultRecord {
            kind: VaultKind::Hsm(HsmSettings {
                module: "/usr/lib/hsm.so".into(),
                token: "my token".into(),
                pin_file: None,
            }),
            ..https("hsm", "https://hsm.vault.localhost")
        };
        for vault in [hsm, https("far", "https://far.vault.example:8443")] {
            catalog.insert_vault(&vault).unwrap();
            assert_eq!(catalog.vault(&vault.name).unwrap().record, vault);
            let found = catalog.vault_by_url(&vault.url).unwrap().unwrap();
            assert_eq!(found.record, vault);
        }
        assert_eq!(
            catalog.vault_by_url("https://far.vault.example").unwrap(),
            None
        );
        let shared = Uuid::new_v4();
        let identities = [
            DesIdentity::Imds { client_id: None },
            DesIdentity::Endpoint {
                url: "https://localhost:8443/msi/token".into(),
                header_file: "/etc/secret".into(),
                client_id: Some(Uuid::from_u128(1)),
            },
        ];
        for (n, identity) in identities.into_iter().enumerate() {
            let set = DiskEncryptionSetRecord {
                identity,
                principal_id: shared,
                ..des(&format!("set{n}"))
            };
            catalog.insert_des(&set).unwrap();
            assert_eq!(catalog.des(&set.name).unwrap().record, set);
        }
    });
}

#[test]
fn what_has_departed_is_kept_in_mind_until_it_is_there_again_or_forgotten() {
    on_each(|place| {
        let one = place.catalog();
        one.installation().unwrap();
        let layers = |url: &str| {
            vec![LayerUse {
                layer: Uuid::new_v4(),
                disk_encryption_set: None,
                key_url: url.into(),
            }]
        };
        let row = DiskRecord {
            layers: layers("https://v.vault.localhost/keys/below/1"),
            ..disk("d", None)
        };
        let header = DiskRecord {
            layers: layers("https://v.vault.localhost/keys/newer/2"),
            ..row.clone()
        };
        let departed = DepartedRecord::new(&row, Some(&header), Departure::Unregistered);
        let urls: Vec<&str> = departed
            .keys
            .iter()
            .map(|key| key.key_url.as_str())
            .collect();
        let expected =
            ["k/0123", "below/1", "newer/2"].map(|k| format!("https://v.vault.localhost/keys/{k}"));
        assert_eq!(urls, expected);
        let rev = one.insert_disk(&row).unwrap();
        // Not before the row goes.
        let stale = one.depart_disk(&row, Rev(7), &departed);
        assert!(matches!(stale, Err(CatalogError::Changed { .. })));
        assert!(one.departed().unwrap().is_empty());
        one.depart_disk(&row, rev, &departed).unwrap();
        assert_eq!(one.departed().unwrap(), std::slice::from_ref(&departed));
        assert!(one.disks().unwrap().is_empty());
        let noted = "https://v.vault.localhost";
        one.note_vault(noted, &[]).unwrap();
        assert!(one.not_noted_since(noted).unwrap().is_none());
        let restored = RestoredRecord {
            backup: Some(departed.time),
            time: departed.time,
        };
        one.mark_restored(&restored).unwrap();
        // What was noted in the backup says nothing of what was made since.
        assert!(one.not_noted_since(noted).unwrap().is_some());
        // It survives the catalog, and so does that one was restored.
        let is_again = place.in_file().is_some();
        let one = match place.in_file() {
            None => one,
            Some(path) => {
                drop(one);
                std::fs::remove_file(&path).unwrap();
                let copy = CatalogCopy::read(&path).unwrap().unwrap();
                DatabaseCatalog::make_again(&path, &copy).unwrap()
            }
        };
        assert_eq!(one.departed().unwrap(), std::slice::from_ref(&departed));
        let both = one.restored().unwrap().unwrap();
        assert_eq!(both.backup, restored.backup);
        assert_eq!(both.time > restored.time, is_again);
        one.clear_restored().unwrap();
        assert_eq!(one.restored().unwrap(), None);
        // A new one of the same name is another one.
        one.insert_disk(&disk("d", None)).unwrap();
        assert_eq!(one.departed().unwrap().len(), 1);
        let again = DiskRecord {
            name: "again".into(),
            ..row
        };
        one.insert_disk(&again).unwrap();
        assert!(one.departed().unwrap().is_empty());
        if let Some(path) = place.in_file() {
            let copy = CatalogCopy::read(&path).unwrap().unwrap();
            assert!(copy.departed.is_empty());
        }
        // No vault is noted in a catalog that was made again, until it is.
        let (noted, other) = ("https://v.vault.localhost", "https://w.vault.localhost");
        assert!(one.not_noted_since(noted).unwrap().is_some());
        one.note_vault(noted, std::slice::from_ref(&departed))
            .unwrap();
        assert_eq!(one.departed().unwrap(), std::slice::from_ref(&departed));
        assert!(one.not_noted_since(noted).unwrap().is_none());
        assert!(one.not_noted_since(other).unwrap().is_some());
        assert!(one.forget_departed(departed.id).unwrap());
        assert!(!one.forget_departed(departed.id).unwrap());
    });
}

#[test]
fn a_vault_is_forgotten_only_when_no_set_and_no_disk_of_one_needs_it() {
    on_each(|place| {
        let catalog = place.catalog();
        let vault = https("far", "https://far.example");
        catalog.insert_vault(&vault).unwrap();
        let url = "https://far.example/keys/k".to_owned();
        let mut set = DiskEncryptionSetRecord {
            key_url: url.clone(),
            ..des("set")
        };
        catalog.insert_des(&set).unwrap();
        let mut disk = DiskRecord {
            key_url: format!("{url}/0123"),
            ..disk("d", Some("set"))
        };
        let disk_rev = catalog.insert_disk(&disk).unwrap();
        let delete = || {
            let rev = catalog.vault("far").unwrap().rev;
            catalog.delete_vault("far", rev)
        };
        let in_use =
            |error| matches!(error, Err(CatalogError::VaultInUse { set, .. }) if set == "set");
        assert!(in_use(delete()));
        set.key_url = "https://far.example.net/keys/k".into();
        let rev = catalog.des("set").unwrap().rev;
        catalog.update_des(rev, &set).unwrap();
        assert!(in_use(delete()), "the disk still needs it");
        disk.key_url = "https://far.example.net/keys/k/1".into();
        catalog.update_disk(disk_rev, &disk).unwrap();
        let rev = catalog.vault("far").unwrap().rev;
        let next = catalog.update_vault(rev, &vault).unwrap();
        let stale = catalog.delete_vault("far", rev);
        assert!(matches!(stale, Err(CatalogError::Changed { .. })));
        catalog.delete_vault("far", next).unwrap();
        let gone = catalog.delete_vault("far", next);
        assert!(matches!(gone, Err(CatalogError::NotFound { .. })));
    });
}

#[test]
fn a_catalog_of_version_1_keeps_its_sets_and_disks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.db");
    let db = rusqlite::Connection::open(&path).unwrap();
    let version_1 = include_str!("../version-1.sql");
    db.execute_batch(version_1).unwrap();
    drop(db);
    let catalog = DatabaseCatalog::open(&path).unwrap();
    let vault = catalog.vault("v").unwrap().record;
    assert_eq!(vault.kind, VaultKind::Embedded);
    let set = catalog.des("set").unwrap().record;
    assert_eq!(set.identity, DesIdentity::SystemAssigned);
    assert_eq!(set.principal_id, Uuid::from_u128(3));
    assert_eq!(set.previous_keys, ["https://v.vault.localhost/keys/old"]);
    let under = catalog.resources_under(Some("set")).unwrap();
    assert_eq!(under.len(), 1);
    // What wraps it is known before its layers are.
    let disk_of_then = &under[0].record;
    assert!(disk_of_then.layers.is_empty());
    let keys: Vec<_> = disk_of_then.keys_under(Some("set")).collect();
    assert_eq!(keys, [&disk_of_then.key_url]);
    // The reference from disks to sets is still enforced.
    let orphan = catalog.insert_disk(&disk("e", Some("no set")));
    assert!(matches!(orphan, Err(CatalogError::NotFound { .. })));
}

#[test]
fn what_is_unfinished_or_named_is_found_without_a_look_at_all() {
    on_each(|place| {
        let catalog = place.catalog();
        for name in ["a", "b", "c"] {
            let ready = DiskRecord {
                state: DiskState::Ready,
                ..disk(name, None)
            };
            catalog.insert_disk(&ready).unwrap();
        }
        catalog.insert_disk(&disk("d", None)).unwrap();
        let names = |rows: Vec<Stored<DiskRecord>>| {
            let names = rows.into_iter().map(|row| row.record.name);
            names.collect::<Vec<_>>()
        };
        assert_eq!(names(catalog.unfinished().unwrap()), ["d"]);
        let named = catalog.resources_named(ResourceKind::Disk, &["c", "a", "x", "d"]);
        assert_eq!(names(named.unwrap()), ["a", "c", "d"]);
        let named = catalog.resources_named(ResourceKind::Image, &["c"]);
        assert!(named.unwrap().is_empty());
        if place.in_file().is_none() {
            return;
        }
        for (condition, index) in [
            (resources::UNFINISHED.to_owned(), "resources_unfinished"),
            (resources::named_condition(), "sqlite_autoindex_resources_2"),
        ] {
            let sql = format!("EXPLAIN QUERY PLAN {}", resources::select(&condition));
            let nothing = vec![Value::Text("".into()); condition.matches('?').count()];
            let detail = |row: &Row| row.get::<String>("detail");
            let plan = catalog.db().select(&sql, &nothing, detail).unwrap();
            let uses = |step: &String| step.contains("resources") && step.contains(index);
            assert!(plan.iter().any(uses), "{plan:?}");
        }
    });
}
