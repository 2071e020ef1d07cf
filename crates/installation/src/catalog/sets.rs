//! Adding, changing and removing disk encryption sets in the SQLite catalog.

use rusqlite::{TransactionBehavior, params};

use super::columns::{constraint, json, optional_time_text, stale, time_text};
use super::error::CatalogError;
use super::interface::Catalog;
use super::record::{DiskEncryptionSetRecord, Kind, Rev};
use super::rows::DES_COLUMNS;
use super::sqlite::SqliteCatalog;
use super::{Change, identities, lock_rows, resources};

impl SqliteCatalog {
    pub(super) fn add_des(&self, record: &DiskEncryptionSetRecord) -> Result<(), CatalogError> {
        let name = &record.name;
        let mut db = self.db();
        let db = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        identities::check_user_assigned(&db, &record.identity)?;
        db.execute(
            &format!(
                "INSERT INTO disk_encryption_sets ({DES_COLUMNS}) \
                     VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?, ?)"
            ),
            params![
                name,
                json(name, &record.identity)?,
                record.principal_id.to_string(),
                record.key_url,
                json(name, &record.previous_keys)?,
                record.auto_rotation,
                optional_time_text(name, record.last_rotation)?,
                time_text(name, record.created)?,
                json(name, &record.encryption_type)?,
            ],
        )
        .map_err(|e| constraint(e, Kind::DiskEncryptionSet, name, None))?;
        Ok(db.commit()?)
    }

    pub(super) fn change_des(
        &self,
        rev: Rev,
        record: &DiskEncryptionSetRecord,
    ) -> Result<Rev, CatalogError> {
        let name = &record.name;
        let mut db = self.db();
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        identities::check_user_assigned(&transaction, &record.identity)?;
        let changed = transaction.execute(
            "UPDATE disk_encryption_sets SET rev = rev + 1, identity = ?, principal_id = ?, \
             key_url = ?, previous_keys = ?, auto_rotation = ?, last_rotation = ?, created = ?, \
             encryption_type = ? \
             WHERE name = ? AND rev = ?",
            params![
                json(name, &record.identity)?,
                record.principal_id.to_string(),
                record.key_url,
                json(name, &record.previous_keys)?,
                record.auto_rotation,
                optional_time_text(name, record.last_rotation)?,
                time_text(name, record.created)?,
                json(name, &record.encryption_type)?,
                name,
                rev.0,
            ],
        )?;
        if changed == 0 {
            drop(transaction);
            drop(db);
            self.des(name)?;
            return Err(stale(Kind::DiskEncryptionSet, name));
        }
        transaction.execute(
            "DELETE FROM identities WHERE des = ? AND object_id <> ?",
            params![name, record.principal_id.to_string()],
        )?;
        transaction.commit()?;
        Ok(Rev(rev.0 + 1))
    }

    pub(super) fn remove_des(&self, name: &str, rev: Rev) -> Result<(), CatalogError> {
        let mut db = self.db();
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        lock_rows::refuse(&transaction, Kind::DiskEncryptionSet, name, Change::Delete)?;
        resources::refuse_set_in_use(&transaction, name)?;
        let deleted = transaction.execute(
            "DELETE FROM disk_encryption_sets WHERE name = ? AND rev = ?",
            params![name, rev.0],
        )?;
        transaction.commit()?;
        drop(db);
        if deleted == 0 {
            self.des(name)?;
            return Err(stale(Kind::DiskEncryptionSet, name));
        }
        Ok(())
    }
}
