//! Soft delete: a deleted key can be recovered until its retention time is over.

use database::Connection;
use time::Duration;

use super::due::PURGE;
use super::keys::{behind, latest};
use super::subject::{Done, Subject};
use super::vault::EmbeddedVault;
use crate::refusal;
use crate::store::{self, DeletedRow, DueKind};
use crate::{Caller, DeletedKey, KeyBundle, KeyPermission, Page, VaultError};

impl EmbeddedVault {
    /// Deletes a key with all its versions; it can be recovered until its retention time is over.
    ///
    /// # Errors
    /// [`Forbidden`](crate::VaultErrorCode::Forbidden) without the permission `delete`,
    /// [`KeyNotFound`](crate::VaultErrorCode::KeyNotFound).
    pub fn delete_key(&self, caller: &Caller, name: &str) -> Result<DeletedKey, VaultError> {
        let deleted = self.audited(caller, &Subject::key("KeyDelete", name), |db| {
            self.authorize(db, caller, KeyPermission::Delete)?;
            let found = self.find(db, &latest(name))?;
            let now = self.clock.now();
            let days = self.settings_in(db)?.retention_days;
            let row = DeletedRow {
                name: found.name,
                deleted: now,
                purge_at: now + Duration::days(days.into()),
            };
            store::insert_deleted(db, &row)?;
            self.deleted_view(db, &row)
        })?;
        self.forget_key(name);
        Ok(deleted)
    }

    /// A deleted key.
    ///
    /// # Errors
    /// [`Forbidden`](crate::VaultErrorCode::Forbidden) without the permission `get`, [`KeyNotFound`](crate::VaultErrorCode::KeyNotFound).
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
    /// [`Forbidden`](crate::VaultErrorCode::Forbidden) without the permission `list`.
    pub fn deleted_keys(&self, caller: &Caller) -> Result<Vec<DeletedKey>, VaultError> {
        Ok(self.deleted_keys_page(caller, None, usize::MAX)?.items)
    }

    /// At most `max` deleted keys, from where [`Page::next`] has said.
    ///
    /// # Errors
    /// [`Forbidden`](crate::VaultErrorCode::Forbidden) without the permission `list`,
    /// [`BadParameter`](crate::VaultErrorCode::BadParameter) for an `after` that no page has given.
    pub fn deleted_keys_page(
        &self,
        caller: &Caller,
        after: Option<&str>,
        max: usize,
    ) -> Result<Page<DeletedKey>, VaultError> {
        self.audited(caller, &Subject::vault("KeyListDeleted"), |db| {
            self.authorize(db, caller, KeyPermission::List)?;
            let now = self.clock.now();
            let mut rows = store::deleted_keys(db, behind(after)?, usize::MAX)?;
            rows.retain(|row| row.purge_at > now);
            rows.truncate(max);
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
    /// [`Forbidden`](crate::VaultErrorCode::Forbidden) without the permission `recover`,
    /// [`KeyNotFound`](crate::VaultErrorCode::KeyNotFound).
    pub fn recover_key(&self, caller: &Caller, name: &str) -> Result<KeyBundle, VaultError> {
        self.audited(caller, &Subject::key("KeyRecover", name), |db| {
            self.authorize(db, caller, KeyPermission::Recover)?;
            self.find_deleted(db, name)?;
            store::remove_deleted(db, name)?;
            // What was noted of this deletion says nothing of the next one.
            store::clear_retry(db, DueKind::Purge, name)?;
            let row = self.find(db, &latest(name))?;
            let bundle = self.bundle(&self.settings_in(db)?, &row);
            Ok(Done::with_version(bundle, &row.version))
        })
    }

    /// Destroys a deleted key for good: nothing that it wrapped can be read any more.
    ///
    /// A key in a device is marked first, so that nobody can recover it any more, and is destroyed
    /// then; where the device fails, [`run_due`](Self::run_due) tries again.
    ///
    /// # Errors
    /// [`Forbidden`](crate::VaultErrorCode::Forbidden) without the permission `purge`,
    /// [`ForbiddenByPolicy`](crate::VaultErrorCode::ForbiddenByPolicy) in a vault with purge protection,
    /// [`KeyNotFound`](crate::VaultErrorCode::KeyNotFound) for a key that is not deleted; what the device says.
    pub fn purge_key(&self, caller: &Caller, name: &str) -> Result<(), VaultError> {
        self.audited(caller, &Subject::key(PURGE, name), |db| {
            self.authorize(db, caller, KeyPermission::Purge)?;
            let row = self.find_deleted(db, name)?;
            if self.settings_in(db)?.purge_protection {
                return Err(refusal::purge_protected(&self.name, &row));
            }
            if self.in_device() {
                return store::expire_deleted(db, name, self.clock.now());
            }
            self.destroy(&store::key_versions(db, name, 0, usize::MAX)?)?;
            self.erase_rows(db, name)
        })?;
        if !self.in_device() {
            return Ok(());
        }
        self.purge_one(name).map(drop).map_err(|e| {
            let what = format!(
                "the key '{name}' cannot be recovered any more, but its private key is not destroyed \
                 yet, and that is tried again by itself: {e}"
            );
            VaultError::new(e.code, what)
        })
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
