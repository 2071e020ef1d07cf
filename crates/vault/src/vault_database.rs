//! A vault's database by itself, where its master key is not at hand: what a backup looks at.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use database::{Connection, Database, Mode, params, sqlite};
use time::OffsetDateTime;
use uuid::Uuid;

use super::master::{MasterKey, MasterSource, Slot};
use super::store::{self, VaultRow};
use super::{VaultDeletion, VaultError, VaultErrorCode, VaultSettings, moved};
use crate::embedded::{WHOLE_VAULT, busiest, puts_off};
use crate::error::is_there;

/// A `vault.db`, or what a server has of a vault.
pub struct VaultDatabase {
    db: Database,
    row: VaultRow,
}

impl VaultDatabase {
    /// Opens the database at `path`, which must be there.
    ///
    /// # Errors
    /// [`VaultErrorCode::VaultNotFound`], [`VaultErrorCode::Internal`].
    pub fn open(path: &Path) -> Result<Self, VaultError> {
        must_be_there(path)?;
        let db: Database = sqlite::open(path, &store::SCHEMA)?.into();
        moved::refuse(&db, path)?;
        Self::of(db, path.display())
    }

    /// As [`open`](Self::open) for who only looks: the database stays as it is, of an older version too,
    /// so that a process of that version can go on with it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn look(path: &Path) -> Result<Self, VaultError> {
        must_be_there(path)?;
        let db: Database = sqlite::open_as_it_is(path, &store::SCHEMA)?.into();
        moved::refuse(&db, path)?;
        Self::of(db, path.display())
    }

    /// The database of a vault on a server, which messages call `place`.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`VaultErrorCode::Unreachable`].
    pub fn on_server(db: Database, place: &str) -> Result<Self, VaultError> {
        Self::of(db, place)
    }

    fn of(db: Database, place: impl Display) -> Result<Self, VaultError> {
        let none = || VaultError::no_files(format!("{place} is the database of no vault"));
        let row = store::vault(&db)?.ok_or_else(none)?;
        Ok(Self { db, row })
    }

    /// What tells the vault from every other one, of the same name too.
    pub fn id(&self) -> Uuid {
        self.row.id
    }

    /// When the vault was made.
    pub fn created(&self) -> OffsetDateTime {
        self.row.created
    }

    /// The vault's name.
    pub fn name(&self) -> &str {
        &self.row.name
    }

    /// Whether the vault is deleted.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn deletion(&self) -> Result<Option<VaultDeletion>, VaultError> {
        store::deletion(&self.db)
    }

    /// As [`EmbeddedVault::incomplete`](crate::EmbeddedVault::incomplete).
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn incomplete(&self) -> Result<Option<OffsetDateTime>, VaultError> {
        store::incomplete(&self.db)
    }

    /// As [`EmbeddedVault::mark_incomplete`](crate::EmbeddedVault::mark_incomplete), where its master key is not at
    /// hand: who does so records it elsewhere.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn mark_incomplete(&self, since: OffsetDateTime) -> Result<(), VaultError> {
        store::set_incomplete(&self.db, Some(since))
    }

    /// Whether the end of the deleted vault, which is due, is put off by a day: the clock may be wrong.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn puts_off_purge(&self, now: OffsetDateTime) -> Result<bool, VaultError> {
        let db = &self.db;
        db.transaction(Mode::Write, |db| puts_off(db, WHOLE_VAULT, now))
    }

    /// What the vault does with deleted keys.
    pub fn settings(&self) -> VaultSettings {
        self.row.settings
    }

    /// Its connection, for the audit log in it.
    pub fn connection(&self) -> &Connection {
        &self.db
    }

    /// The newest version of each key, deleted keys too.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn newest_versions(&self) -> Result<BTreeMap<String, String>, VaultError> {
        let sql = "SELECT name, version FROM key_versions WHERE seq IN \
                   (SELECT max(seq) FROM key_versions GROUP BY name)";
        let newest = self.db.select(sql, &[], |row| {
            Ok::<_, VaultError>((row.get::<String>(0)?, row.get::<String>(1)?))
        })?;
        Ok(newest.into_iter().collect())
    }

    /// The identity that is nearest to the vault's limit now, with how much of it is used up, in per cent; and how
    /// many records of one identity the vault takes in 10 seconds.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn busiest(&self, now: OffsetDateTime) -> Result<(Option<(String, u64)>, u64), VaultError> {
        let limit = store::operations_limit(&self.db)?;
        Ok((busiest(&self.db, now)?, limit.unsigned_abs()))
    }

    /// Whether a key has a version, or any at all.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn has_version(&self, key: &str, version: Option<&str>) -> Result<bool, VaultError> {
        let sql = "SELECT 1 FROM key_versions WHERE name = ?1 COLLATE NOCASE \
                   AND (version = ?2 OR ?2 IS NULL)";
        let found: Option<i64> = self.db.value(sql, params![key, version])?;
        Ok(found.is_some())
    }

    /// Whether the log says that a key was purged.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn was_purged(&self, key: &str) -> Result<bool, VaultError> {
        let sql = "SELECT 1 FROM audit WHERE operation = 'KeyPurge' AND code IS NULL \
                   AND key = ? COLLATE NOCASE";
        let found: Option<i64> = self.db.value(sql, params![key])?;
        Ok(found.is_some())
    }

    /// Where the vault expects its master key; `None` for one that was never given a choice.
    pub fn master_source(&self) -> Option<MasterSource> {
        self.row.master.clone()
    }

    /// Where the vault expects its master key, in a few words.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn describe_master(&self) -> Result<String, VaultError> {
        Ok(match &self.row.master {
            Some(source) => source.describe(),
            None => format!(
                "the systemd credential sealdisk-vault-{} or the file master.key in the vault's directory",
                self.row.name
            ),
        })
    }

    /// Has the vault expect its master key in the file `master.key` beside it.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn expect_master_beside(&self) -> Result<(), VaultError> {
        self.db.execute("UPDATE vault SET master = NULL", &[])?;
        Ok(())
    }

    /// Whether `key` is the vault's master key and opens everything that is stored under it.
    ///
    /// # Errors
    /// [`VaultErrorCode::MasterKey`] when it is not, [`VaultErrorCode::Tampered`] for what it does not
    /// open.
    pub fn check_master(&self, key: &[u8]) -> Result<(), VaultError> {
        let master = MasterKey::from_bytes(key)?;
        if master.check_value(self.row.id)?.as_slice() != self.row.master_check {
            return Err(VaultError::new(
                VaultErrorCode::MasterKey,
                format!("it is not the master key of the vault '{}'", self.row.name),
            ));
        }
        for name in store::all_key_names(&self.db)? {
            for row in store::key_versions(&self.db, &name, 0, usize::MAX)? {
                let slot = Slot {
                    vault: self.row.id,
                    key: &row.name,
                    version: &row.version,
                    n: &row.n,
                    e: &row.e,
                };
                master.open(&slot, &row.sealed)?;
            }
        }
        Ok(())
    }
}

fn must_be_there(path: &Path) -> Result<(), VaultError> {
    match is_there(path)? {
        true => Ok(()),
        false => Err(VaultError::no_files(format!(
            "there is no {}",
            path.display()
        ))),
    }
}
