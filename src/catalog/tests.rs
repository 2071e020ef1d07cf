use time::OffsetDateTime;
use uuid::Uuid;

use super::*;

fn catalog(dir: &tempfile::TempDir) -> SqliteCatalog {
    SqliteCatalog::open(&dir.path().join("catalog.db")).unwrap()
}

fn des(name: &str) -> DiskEncryptionSetRecord {
    DiskEncryptionSetRecord {
        name: name.into(),
        principal_id: Uuid::new_v4(),
        key_url: "https://v.vault.localhost/keys/k".into(),
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
        name: name.into(),
        directory: std::ffi::OsString::from_vec(b"/data/not-utf8-\xff".to_vec()).into(),
        size: 10 << 30,
        disk_encryption_set: des.map(Into::into),
        key_url: "https://v.vault.localhost/keys/k/0123".into(),
        created: OffsetDateTime::now_utc(),
        state: DiskState::Creating,
    }
}

#[test]
fn records_come_back_as_they_were_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (set, first) = (des("set"), disk("first", Some("set")));
    let vault = VaultRecord {
        name: "v".into(),
        url: "https://v.vault.localhost".into(),
        created: OffsetDateTime::now_utc(),
    };
    let installation = {
        let catalog = catalog(&dir);
        catalog.insert_vault(&vault).unwrap();
        catalog.insert_des(&set).unwrap();
        catalog.insert_disk(&first).unwrap();
        catalog.insert_disk(&disk("second", None)).unwrap();
        catalog.installation().unwrap()
    };
    let catalog = catalog(&dir);
    assert_eq!(catalog.installation().unwrap(), installation);
    assert_ne!(installation.operator, installation.platform);
    assert_eq!(catalog.vault("v").unwrap().record, vault);
    assert_eq!(catalog.vaults().unwrap().len(), 1);
    assert_eq!(catalog.des("set").unwrap().record, set);
    assert_eq!(catalog.all_des().unwrap().len(), 1);
    assert_eq!(catalog.disk("first").unwrap().record, first);
    assert_eq!(catalog.disks().unwrap().len(), 2);
    let names = |des| {
        let disks = catalog.disks_of(des).unwrap();
        disks.into_iter().map(|d| d.record.name).collect::<Vec<_>>()
    };
    assert_eq!(names(Some("set")), ["first"]);
    assert_eq!(names(None), ["second"]);
}

#[test]
fn an_update_of_an_old_revision_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mine, theirs) = (catalog(&dir), catalog(&dir));
    mine.insert_disk(&disk("d", None)).unwrap();
    let Stored { rev, mut record } = mine.disk("d").unwrap();
    record.state = DiskState::Ready;
    let newer = theirs.update_disk(rev, &record).unwrap();
    record.size = 512;
    let refused = mine.update_disk(rev, &record).unwrap_err();
    assert!(matches!(refused, CatalogError::Changed { .. }));
    let refused = mine.delete_disk("d", rev).unwrap_err();
    assert!(matches!(refused, CatalogError::Changed { .. }));
    let now = mine.disk("d").unwrap();
    assert_eq!((now.rev, now.record.size), (newer, 10 << 30));
    mine.delete_disk("d", newer).unwrap();
    let refused = theirs.update_disk(newer, &record).unwrap_err();
    assert!(matches!(refused, CatalogError::NotFound { .. }));

    mine.insert_des(&des("s")).unwrap();
    let Stored { rev, record } = mine.des("s").unwrap();
    theirs.update_des(rev, &record).unwrap();
    let refused = mine.update_des(rev, &record).unwrap_err();
    assert!(matches!(refused, CatalogError::Changed { .. }));
    let refused = mine.delete_des("s", rev).unwrap_err();
    assert!(matches!(refused, CatalogError::Changed { .. }));
}

#[test]
fn a_taken_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(&dir);
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
}

#[test]
fn a_set_that_disks_use_stays_and_a_disk_needs_its_set() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = catalog(&dir);
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
    catalog.delete_disk("d", disk.rev).unwrap();
    catalog.delete_des("s", rev).unwrap();
    let error = catalog.des("s").unwrap_err();
    assert!(matches!(error, CatalogError::NotFound { .. }));
}
