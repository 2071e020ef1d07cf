//! A vault that the first version of this program made.

use super::*;
use crate::audit::Entry;

/// Makes the database of a fixture what it was in version 1.
fn downgrade(fixture: &Fixture) {
    let db = rusqlite::Connection::open(fixture.place.dir().join("vault.db")).unwrap();
    let columns = "seq, name, version, rev, enabled, not_before, expires, created, updated, n, e, \
                   sealed";
    db.execute_batch(&format!(
        "ALTER TABLE vault RENAME TO new_vault;
         ALTER TABLE key_versions RENAME TO new_keys;
         ALTER TABLE access_policies RENAME TO new_policies;
         ALTER TABLE audit RENAME TO new_audit;
         {}
         INSERT INTO vault SELECT id, vault_id, name, created, master_check FROM new_vault;
         INSERT INTO key_versions SELECT {columns} FROM new_keys;
         INSERT INTO access_policies SELECT * FROM new_policies;
         INSERT INTO audit SELECT seq, time, caller, operation, key, version, detail,
             CASE WHEN code IS NULL THEN 'allowed' ELSE 'refused' END, code FROM new_audit;
         DROP TABLE new_vault; DROP TABLE new_keys; DROP TABLE new_policies; DROP TABLE new_audit;
         DROP TABLE audit_log; DROP TABLE audit_head; DROP TABLE audit_checkpoints;
         DROP TABLE deleted_keys; DROP TABLE rotation_policies;
         DROP TABLE due_retries; DROP TABLE backup_keys; DROP TABLE key_uses;
         DROP TABLE audit_open; DROP TABLE audit_segments; DROP TABLE audit_quota;
         PRAGMA user_version = 1;",
        include_str!("../store/version-1.sql")
    ))
    .unwrap();
}

#[test]
fn an_old_vault_keeps_its_keys_policies_and_records() {
    let mut fixture = Fixture::new(Engine::Sqlite);
    let wrapped = fixture.wrap().unwrap();
    fixture.vault.key(&caller(), &latest("k")).unwrap_err();
    let without_origin = |log: Vec<Entry>| -> Vec<_> {
        let keep = |e: Entry| {
            (
                e.seq,
                e.time,
                e.event.caller,
                e.event.operation,
                e.event.key,
                e.event.version,
                e.event.code,
            )
        };
        log.into_iter().map(keep).collect()
    };
    let before = without_origin(fixture.vault.audit_log().unwrap());
    downgrade(&fixture);
    // Several processes come upon it at once.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| fixture.reopen().unwrap());
        }
    });
    fixture.vault = fixture.reopen().unwrap();
    let log = fixture.vault.audit_log().unwrap();
    assert_eq!(log.len(), before.len() + 1);
    assert_eq!(log[0].event.origin, "unknown");
    let note = log.last().unwrap();
    assert_eq!(note.event.operation, "AuditChained");
    assert!(
        note.event
            .detail
            .as_ref()
            .unwrap()
            .starts_with(&before.len().to_string())
    );
    assert_eq!(without_origin(log)[..before.len()], before);
    let report = fixture
        .vault
        .read_audit(|chain, db| chain.verify(db, "vault", &[]).unwrap());
    assert_eq!(report.finding, None);

    let uses = fixture.vault.last_uses("k", None).unwrap();
    assert_eq!((uses[0].operation.as_str(), uses[0].uses), ("KeyWrap", 1));
    fixture.unwrap(&wrapped).unwrap();
    let bundle = fixture.vault.key(&fixture.owner, &latest("k")).unwrap();
    assert_eq!(bundle.key.key_ops, ["wrapKey", "unwrapKey"]);
    assert_eq!(bundle.attributes.recoverable_days, Some(90));
    fixture.vault.delete_key(&fixture.owner, "k").unwrap();
}
