//! Names of keys: compared without case, kept as they were given first.

use super::*;

fn name_of(bundle: &KeyBundle) -> String {
    bundle.key.kid.parse::<KeyUrl>().unwrap().key.name
}

#[test]
fn a_key_has_one_name_in_whatever_case() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let first = vault.create_key(owner, "MyKey", &rsa2048()).unwrap();
        let second = vault.create_key(owner, "mykey", &rsa2048()).unwrap();
        assert_eq!(
            (name_of(&first), name_of(&second)),
            ("MyKey".into(), "MyKey".into())
        );
        assert_eq!(vault.key_versions(owner, "MYKEY").unwrap().len(), 2);
        let names: Vec<_> = vault.keys(owner).unwrap().iter().map(name_of).collect();
        assert_eq!(names, ["k", "MyKey"], "by name, without case");

        // What one spelling wrapped another unwraps, with the version that it had then.
        let wrapped = vault
            .wrap_key(owner, &latest("mYkEy"), RSA_OAEP, &[9; 64])
            .unwrap();
        let rotated = vault.rotate_key(owner, "mykey").unwrap();
        assert_eq!(name_of(&rotated), "MyKey");
        for name in ["MyKey", "mykey", "MYKEY"] {
            let key = version(name, &wrapped.key_version);
            let secret = vault
                .unwrap_key(owner, &key, RSA_OAEP, &wrapped.value)
                .unwrap();
            assert_eq!(secret.as_slice(), &[9; 64]);
        }
        assert_eq!(
            vault.last_uses("mykey", None).unwrap()[0].version,
            wrapped.key_version
        );
        let reopened = fixture.reopen().unwrap();
        let key = version("mykey", &wrapped.key_version);
        reopened
            .unwrap_key(owner, &key, RSA_OAEP, &wrapped.value)
            .unwrap();

        let policy = RotationPolicy::default();
        vault.set_rotation_policy(owner, "MYKEY", &policy).unwrap();
        assert!(
            vault
                .rotation_policy(owner, "mykey")
                .unwrap()
                .attributes
                .created
                .is_some()
        );

        // So it is with a deleted key.
        let deleted = vault.delete_key(owner, "mykey").unwrap();
        assert!(
            deleted.recovery_id.ends_with("/deletedkeys/MyKey"),
            "{}",
            deleted.recovery_id
        );
        assert_eq!(
            code(vault.create_key(owner, "MYKEY", &rsa2048())),
            VaultErrorCode::KeyDeleted
        );
        assert_eq!(
            code(vault.key(owner, &latest("MyKey"))),
            VaultErrorCode::KeyNotFound
        );
        vault.recover_key(owner, "MyKEY").unwrap();
        let backup = vault.backup_key(owner, "mykey").unwrap();
        assert_eq!(
            code(vault.restore_key(owner, &backup)),
            VaultErrorCode::Conflict
        );
        vault.delete_key(owner, "mykey").unwrap();
        vault.purge_key(owner, "MyKey").unwrap();
        assert_eq!(
            name_of(&vault.restore_key(owner, &backup).unwrap()),
            "MyKey"
        );
    });
}

/// A database may take letters that look alike for the same, or refuse others: no use of a key by somebody else fails
/// because of what a client calls a key.
#[test]
fn what_no_key_is_called_is_no_key_and_is_recorded() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        for (name, recorded) in [("k\0", "k\u{fffd}"), ("\u{ff4b}", "\u{ff4b}"), ("", "")] {
            for attempt in [
                vault.key(owner, &latest(name)).map(drop),
                vault.delete_key(owner, name).map(drop),
                vault.recover_key(owner, name).map(drop),
            ] {
                assert_eq!(code(attempt), VaultErrorCode::KeyNotFound, "{name}");
            }
            assert_eq!(fixture.last_audit().event.key.as_deref(), Some(recorded));
            let made = vault.create_key(owner, name, &rsa2048());
            assert_eq!(code(made), VaultErrorCode::BadParameter, "{name}");
            let senseless = vault.keys_page(owner, Some(name), 1);
            assert_eq!(code(senseless), VaultErrorCode::BadParameter, "{name}");
            let senseless = vault.deleted_keys_page(owner, Some(name), 1);
            assert_eq!(code(senseless), VaultErrorCode::BadParameter, "{name}");
        }
        vault.delete_key(owner, "k").unwrap();
        assert_eq!(
            code(vault.recover_key(owner, "\u{ff4b}")),
            VaultErrorCode::KeyNotFound
        );
        vault.recover_key(owner, "K").unwrap();
    });
}

#[test]
fn many_who_make_a_key_in_several_cases_at_once_make_one() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        std::thread::scope(|scope| {
            for name in ["new", "New", "NEW", "nEw"] {
                scope.spawn(|| vault.create_key(owner, name, &rsa2048()).unwrap());
            }
        });
        let versions = vault.key_versions(owner, "new").unwrap();
        assert_eq!(versions.len(), 4);
        let first = name_of(&versions[0]);
        assert!(versions.iter().all(|version| name_of(version) == first));
    });
}

#[test]
fn many_who_rotate_a_key_at_once_all_do() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let (vault, owner) = (&fixture.vault, &fixture.owner);
        let other = fixture.reopen().unwrap();
        std::thread::scope(|scope| {
            for vault in [vault, &other, vault, &other] {
                scope.spawn(|| vault.rotate_key(owner, "k").unwrap());
            }
        });
        assert_eq!(vault.key_versions(owner, "k").unwrap().len(), 5);
    });
}

/// The database of a fixture as it was before names were compared without case.
fn downgrade(fixture: &Fixture, more: &str) {
    let path = fixture.place.dir().join("vault.db");
    let db = rusqlite::Connection::open(path).unwrap();
    let mut batch = String::new();
    for table in [
        "key_versions",
        "deleted_keys",
        "rotation_policies",
        "due_retries",
        "key_uses",
    ] {
        let sql = "SELECT sql FROM sqlite_schema WHERE name = ?";
        let made: String = db.query_row(sql, [table], |row| row.get(0)).unwrap();
        let before = made.replace(" COLLATE NOCASE", "");
        assert_ne!(made, before, "{table}");
        let before = before.replacen(&format!("\"{table}\""), "older", 1);
        batch += &format!(
            "{before}; INSERT INTO older SELECT * FROM {table}; DROP TABLE {table}; \
             ALTER TABLE older RENAME TO {table};"
        );
    }
    batch += "ALTER TABLE vault DROP COLUMN deleted; ALTER TABLE vault DROP COLUMN purge_at; \
              ALTER TABLE vault DROP COLUMN master; DROP TABLE backup_keys;";
    // What later versions have added.
    let later = "DROP TABLE audit_open; DROP TABLE audit_segments; DROP TABLE audit_quota;
                 ALTER TABLE vault DROP COLUMN operations_limit; ALTER TABLE vault DROP COLUMN network;
                 ALTER TABLE vault DROP COLUMN incomplete;";
    db.execute_batch(&format!("{batch} {more} {later} PRAGMA user_version = 3;"))
        .unwrap();
}

#[test]
fn an_older_vault_is_carried_over_with_its_numbers() {
    let fixture = Fixture::new(Engine::Sqlite);
    let wrapped = fixture.wrap().unwrap();
    fixture
        .vault
        .create_key(&fixture.owner, "gone", &rsa2048())
        .unwrap();
    fixture.vault.delete_key(&fixture.owner, "gone").unwrap();
    fixture.vault.purge_key(&fixture.owner, "gone").unwrap();
    // The purged version had number 2, which the older tables know as well.
    let numbers = "UPDATE sqlite_sequence SET seq = 2 WHERE name = 'key_versions';";
    downgrade(&fixture, numbers);
    let vault = fixture.reopen().unwrap();
    let key = version("K", &wrapped.key_version);
    vault
        .unwrap_key(&fixture.owner, &key, RSA_OAEP, &wrapped.value)
        .unwrap();
    assert_eq!(vault.last_uses("K", None).unwrap().len(), 2);
    vault.create_key(&fixture.owner, "K", &rsa2048()).unwrap();
    let db = rusqlite::Connection::open(fixture.place.dir().join("vault.db")).unwrap();
    let last: i64 = db
        .query_row("SELECT max(seq) FROM key_versions", [], |row| row.get(0))
        .unwrap();
    assert!(
        last >= 3,
        "the number of a purged version is not given again: {last}"
    );
}

#[test]
fn an_older_vault_with_names_that_differ_in_case_is_refused_and_left_as_it_is() {
    let fixture = Fixture::new(Engine::Sqlite);
    let columns = "version, rev, enabled, not_before, expires, created, updated, n, e, sealed, kty, \
                   key_ops, tags";
    let twin = format!(
        "INSERT INTO key_versions (name, {columns}) SELECT 'K', {columns} FROM key_versions;"
    );
    downgrade(&fixture, &twin);
    for _ in 0..2 {
        let error = fixture.reopen().err().unwrap();
        assert!(
            error
                .message
                .contains("the keys 'K' and 'k' differ in case only"),
            "{error}"
        );
    }
    let older = rusqlite::Connection::open(fixture.place.dir().join("vault.db")).unwrap();
    let twin = "DELETE FROM key_versions WHERE name = 'K'";
    older.execute_batch(twin).unwrap();
    fixture
        .reopen()
        .unwrap()
        .key(&fixture.owner, &latest("K"))
        .unwrap();
}

#[test]
fn a_time_limit_can_be_taken_away() {
    on_each(|engine| {
        let fixture = Fixture::new(engine);
        let now = fixture.clock.now();
        let limits = AttributeChange {
            not_before: Some(Some(now - Duration::HOUR)),
            expires: Some(Some(now + Duration::HOUR)),
            ..AttributeChange::default()
        };
        fixture.set(limits).unwrap();
        let none = AttributeChange {
            not_before: Some(None),
            expires: Some(None),
            ..AttributeChange::default()
        };
        let attributes = fixture.set(none).unwrap().attributes;
        assert_eq!((attributes.not_before, attributes.expires), (None, None));
        assert_eq!(
            fixture.last_audit().event.detail.as_deref(),
            Some("notBefore= expires=")
        );
        fixture.clock.advance(Duration::DAY);
        fixture.wrap().unwrap();
    });
}
