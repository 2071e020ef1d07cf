//! The file of a vault, or of an installation's log, for whoever moves it to a server.

use std::path::{Path, PathBuf};

use database::{Connection, Database, sqlite};

use crate::{VaultError, VaultErrorCode, audit, moved, store};

/// The tables of a log, each behind those that its rows refer to.
const LOG: [&str; 7] = [
    "audit_log",
    "audit",
    "audit_checkpoints",
    "audit_open",
    "audit_segments",
    "audit_head",
    "audit_intents",
];

/// Those of a vault, and behind them those of its log.
const VAULT: [&str; 15] = [
    "vault",
    "key_versions",
    "access_policies",
    "deleted_keys",
    "rotation_policies",
    "due_retries",
    "key_uses",
    "backup_keys",
    "audit_quota",
    "audit_log",
    "audit",
    "audit_checkpoints",
    "audit_open",
    "audit_segments",
    "audit_head",
];

/// The tables whose rows get numbers by themselves: their names, and the column.
const NUMBERED: [(&str, &str); 2] = [("key_versions", "seq"), ("backup_keys", "seq")];

/// A file, whether what is in it was moved or not.
pub struct MovingFile {
    db: Database,
    path: PathBuf,
    tables: &'static [&'static str],
}

impl MovingFile {
    /// The file of a vault.
    ///
    /// # Errors
    /// [`VaultError`], also for one that this version has not brought up to date yet, which takes its master key.
    pub fn vault(path: &Path) -> Result<Self, VaultError> {
        let db = sqlite::open(path, &store::SCHEMA)?.into();
        Self::of(db, path, &VAULT)
    }

    /// The file of an installation's log.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn log(path: &Path) -> Result<Self, VaultError> {
        let db = audit::AuditLog::open_whatever(path)?;
        Self::of(db, path, &LOG)
    }

    fn of(db: Database, path: &Path, tables: &'static [&'static str]) -> Result<Self, VaultError> {
        let refuse = |what: &str| {
            let path = path.display();
            VaultError::new(
                VaultErrorCode::Conflict,
                format!("{path} cannot be moved: {what}"),
            )
        };
        let all = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'";
        for table in db.select(all, &[], |row| row.get::<String>(0))? {
            if table == "audit_unchained" {
                return Err(refuse(
                    "it is of an earlier version, and was not used since: `sealdisk keyvault list-deleted` and \
                     `keyvault show` bring it up to date",
                ));
            }
            if table != moved::NAME && !tables.contains(&table.as_str()) {
                let what = format!("it has a table that this version does not move: {table}");
                return Err(refuse(&what));
            }
        }
        if !db.the_value::<bool>("SELECT count(*) FROM audit_log", &[])? {
            return Err(refuse("it has no audit log"));
        }
        Ok(Self {
            db,
            path: path.into(),
            tables,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it.
    pub fn database(&self) -> &Database {
        &self.db
    }

    /// Its tables, each behind those that its rows refer to.
    pub fn tables(&self) -> &'static [&'static str] {
        self.tables
    }

    /// For each of its tables whose rows get numbers by themselves the column, and the next number: those that were given
    /// and are gone are given to nobody else.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn next_numbers(&self) -> Result<Vec<(&'static str, &'static str, i64)>, VaultError> {
        let mut next = Vec::new();
        for (table, column) in NUMBERED {
            if !self.tables.contains(&table) {
                continue;
            }
            let sql = format!("SELECT coalesce(max({column}), 0) FROM {table}");
            let largest: i64 = self.db.the_value(&sql, &[])?;
            let given = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?";
            let given: i64 = self.db.the_value(given, database::params![table])?;
            next.push((table, column, largest.max(given).saturating_add(1)));
        }
        Ok(next)
    }

    /// Where what is in it was moved to, if it was.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn moved_to(&self) -> Result<Option<String>, VaultError> {
        Ok(moved::place_of(&self.db)?)
    }

    /// Marks it as moved there, in a transaction of it: nothing in it changes any more, and nobody uses it. It may be
    /// marked.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn leave(&self, file: &Connection, place: &str) -> Result<(), VaultError> {
        match moved::place_of(file)? {
            Some(_) => Ok(()),
            None => Ok(moved::mark(file, self.tables, place)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use database::Mode;

    use super::*;
    use crate::audit::{AuditError, AuditLog, AuditRecord};
    use crate::{
        Caller, EmbeddedVault, KeySize, NewKey, Permissions, SystemClock, VaultDatabase,
        VaultSettings,
    };

    #[test]
    fn a_file_that_was_moved_is_used_by_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let open = || EmbeddedVault::open(dir.path(), "v", Arc::new(SystemClock));
        let settings = VaultSettings::default();
        let vault =
            EmbeddedVault::create(dir.path(), "v", &settings, Arc::new(SystemClock)).unwrap();
        let owner = Caller::local(uuid::Uuid::new_v4());
        let all = Permissions::all();
        vault.set_policy(&owner, owner.object_id, &all).unwrap();
        let path = dir.path().join("vault.db");
        let file = MovingFile::vault(&path).unwrap();
        let next = || file.next_numbers().unwrap();
        assert_eq!(
            next(),
            [("key_versions", "seq", 1), ("backup_keys", "seq", 1)]
        );
        let new = NewKey::new(KeySize::Rsa2048);
        for name in ["a", "b"] {
            vault.create_key(&owner, name, &new).unwrap();
        }
        file.database()
            .execute("DELETE FROM key_versions WHERE name = 'b'", &[])
            .unwrap();
        assert_eq!(next()[0], ("key_versions", "seq", 3));
        assert_eq!(file.moved_to().unwrap(), None);
        for _ in 0..2 {
            file.database()
                .transaction(Mode::Write, |db| file.leave(db, "postgres://it's/d"))
                .unwrap();
        }
        let place = MovingFile::vault(&path).unwrap().moved_to().unwrap();
        assert_eq!(place.as_deref(), Some("postgres://it's/d"));
        let looked = [VaultDatabase::open(&path), VaultDatabase::look(&path)];
        let mut refused: Vec<_> = looked.into_iter().map(|looked| looked.err()).collect();
        refused.push(open().err());
        // Who has it open since before.
        refused.push(vault.create_key(&owner, "c", &new).err());
        for refused in refused {
            let refused = refused.unwrap().to_string();
            assert!(
                refused.contains("was moved to postgres://it's/d"),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_log_that_was_moved_is_appended_to_by_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.db");
        let log = AuditLog::open(&path).unwrap();
        let record = AuditRecord::new(uuid::Uuid::nil(), "local", "Test");
        log.append(&record).unwrap();
        let file = MovingFile::log(&path).unwrap();
        assert!(file.next_numbers().unwrap().is_empty());
        file.database()
            .transaction(Mode::Write, |db| file.leave(db, "postgres://h/d"))
            .unwrap();
        let refused = log.append(&record).unwrap_err().to_string();
        assert!(refused.contains("was moved to"), "{refused}");
        for refused in [
            AuditLog::open(&path).err(),
            AuditLog::open_database(&path).err(),
            AuditLog::look_at_database(&path).err(),
        ] {
            let refused = refused.unwrap();
            assert!(matches!(refused, AuditError::Moved { .. }), "{refused}");
        }
        assert!(
            MovingFile::log(&path)
                .unwrap()
                .moved_to()
                .unwrap()
                .is_some()
        );
    }
}
