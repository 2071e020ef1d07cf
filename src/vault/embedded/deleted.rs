//! Soft delete: a deleted key can be recovered until its retention time is over.

use rusqlite::{Connection, TransactionBehavior};
use time::{Duration, OffsetDateTime};

use super::keys::latest;
use super::{Done, EmbeddedVault, Subject};
use crate::audit::AuditRecord;
use crate::vault::refusal;
use crate::vault::store::{self, DeletedRow};
use crate::vault::{
    Caller, DeletedKey, KeyBundle, KeyPermission, Page, VaultError, VaultErrorCode,
};

/// The audit log's name for the end of a key.
const PURGE: &str = "KeyPurge";

impl EmbeddedVault {
    /// Deletes a key with all its versions; it can be recovered until its retention time is over.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`] without the permission `delete`,
    /// [`VaultErrorCode::KeyNotFound`].
    pub fn delete_key(&self, caller: &Caller, name: &str) -> Result<DeletedKey, VaultError> {
        let deleted = self.audited(caller, &Subject::key("KeyDelete", name), |db| {
            self.authorize(db, caller, KeyPermission::Delete)?;
            self.find(db, &latest(name))?;
            let now = self.clock.now();
            let days = self.settings_in(db)?.retention_days;
            let row = DeletedRow {
                name: name.into(),
                deleted: now,
                purge_at: now + Duration::days(days.into()),
            };
            store::insert_deleted(db, &row)?;
            self.deleted_view(db, &row)
        })?;
        self.cache.forget(name);
        Ok(deleted)
    }

    /// A deleted key.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`] without the permission `get`, [`VaultErrorCode::KeyNotFound`].
    pub fn deleted_key(&self, caller: &Caller, name: &str) -> Result<DeletedKey, VaultError> {
        self.audited(caller, &Subject::key("KeyGetDeleted", name), |db| {
            self.authorize(db, caller, KeyPermission::Get)?;
            let row = self.find_deleted(db, name)?;
            self.deleted_view(db, &row)
        })
    }

    /// All deleted keys, by name.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`] without the permission `list`.
    pub fn deleted_keys(&self, caller: &Caller) -> Result<Vec<DeletedKey>, VaultError> {
        Ok(self.deleted_keys_page(caller, None, usize::MAX)?.items)
    }

    /// At most `max` deleted keys, from where [`Page::next`] has said.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`] without the permission `list`.
    pub fn deleted_keys_page(
        &self,
        caller: &Caller,
        after: Option<&str>,
        max: usize,
    ) -> Result<Page<DeletedKey>, VaultError> {
        self.audited(caller, &Subject::vault("KeyListDeleted"), |db| {
            self.authorize(db, caller, KeyPermission::List)?;
            let rows = store::deleted_keys(db, after.unwrap_or_default(), max)?;
            let items: Result<Vec<_>, _> =
                rows.iter().map(|row| self.deleted_view(db, row)).collect();
            let last = rows.last().filter(|_| rows.len() == max);
            Ok(Page {
                items: items?,
                next: last.map(|row| row.name.clone()),
            })
        })
    }

    /// Brings a deleted key back, as it was.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`] without the permission `recover`,
    /// [`VaultErrorCode::KeyNotFound`].
    pub fn recover_key(&self, caller: &Caller, name: &str) -> Result<KeyBundle, VaultError> {
        self.audited(caller, &Subject::key("KeyRecover", name), |db| {
            self.authorize(db, caller, KeyPermission::Recover)?;
            self.find_deleted(db, name)?;
            store::remove_deleted(db, name)?;
            let row = self.find(db, &latest(name))?;
            let bundle = self.bundle(&self.settings_in(db)?, &row);
            Ok(Done::with_version(bundle, &row.version))
        })
    }

    /// Destroys a deleted key for good: nothing that it wrapped can be read any more.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`] without the permission `purge`,
    /// [`VaultErrorCode::ForbiddenByPolicy`] in a vault with purge protection,
    /// [`VaultErrorCode::KeyNotFound`] for a key that is not deleted.
    pub fn purge_key(&self, caller: &Caller, name: &str) -> Result<(), VaultError> {
        self.audited(caller, &Subject::key(PURGE, name), |db| {
            self.authorize(db, caller, KeyPermission::Purge)?;
            let row = self.find_deleted(db, name)?;
            if self.settings_in(db)?.purge_protection {
                return Err(refusal::purge_protected(&self.name, &row));
            }
            self.erase(db, name)
        })
    }

    /// Destroys the keys whose retention time is over; their names.
    pub(super) fn purge_due(&self) -> Result<Vec<String>, VaultError> {
        let now = self.clock.now();
        if !self.read(|db| Ok(!expired(db, now)?.is_empty()))? {
            return Ok(Vec::new());
        }
        let mut db = self.db();
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let records = self.purge_expired(&transaction)?;
        self.chain.append(&transaction, &records)?;
        transaction.commit()?;
        Ok(records
            .into_iter()
            .filter_map(|record| record.key)
            .collect())
    }

    /// Destroys the keys whose retention time is over, in the caller's transaction; what is to be
    /// recorded about that.
    pub(super) fn purge_expired(&self, db: &Connection) -> Result<Vec<AuditRecord>, VaultError> {
        let expired = expired(db, self.clock.now())?;
        expired
            .into_iter()
            .map(|row| {
                self.erase(db, &row.name)?;
                let subject = Subject {
                    detail: Some("the retention time is over".into()),
                    ..Subject::key(PURGE, &row.name)
                };
                Ok(self.record(&Caller::vault(), &subject, None, None))
            })
            .collect()
    }

    /// Destroys the private keys first: should the transaction not be completed, the key is still
    /// listed as deleted, and is purged again.
    fn erase(&self, db: &Connection, name: &str) -> Result<(), VaultError> {
        for row in store::key_versions(db, name, 0, usize::MAX)? {
            match self.material(&row) {
                Ok(material) => self.keys.delete(&material)?,
                // It can be used by nobody, and must not be in the way of its own removal.
                Err(e) if e.code == VaultErrorCode::Tampered => log::warn!("{e}"),
                Err(e) => return Err(e),
            }
        }
        store::erase_key(db, name)?;
        store::remove_deleted(db, name)?;
        self.cache.forget(name);
        Ok(())
    }

    /// The deleted key of that name whose retention time is not over.
    pub(super) fn deleted_row(
        &self,
        db: &Connection,
        name: &str,
    ) -> Result<Option<DeletedRow>, VaultError> {
        let now = self.clock.now();
        Ok(store::deleted_key(db, name)?.filter(|row| row.purge_at > now))
    }

    fn find_deleted(&self, db: &Connection, name: &str) -> Result<DeletedRow, VaultError> {
        self.deleted_row(db, name)?
            .ok_or_else(|| refusal::no_deleted_key(&self.name, name))
    }

    fn deleted_view(&self, db: &Connection, row: &DeletedRow) -> Result<DeletedKey, VaultError> {
        let latest = store::latest_version(db, &row.name)?
            .ok_or_else(|| refusal::no_deleted_key(&self.name, &row.name))?;
        Ok(DeletedKey {
            bundle: self.bundle(&self.settings_in(db)?, &latest),
            recovery_id: format!("{}/deletedkeys/{}", self.url, row.name),
            deleted: row.deleted,
            scheduled_purge: row.purge_at,
        })
    }
}

fn expired(db: &Connection, now: OffsetDateTime) -> Result<Vec<DeletedRow>, VaultError> {
    let mut rows = store::deleted_keys(db, "", usize::MAX)?;
    rows.retain(|row| row.purge_at <= now);
    Ok(rows)
}
