//! Adding, changing and removing disk encryption sets in the catalog's database.

use database::{Mode, params};

use super::columns::{constraint, json, optional_time_text, stale, time_text};
use super::database_catalog::DatabaseCatalog;
use super::error::CatalogError;
use super::interface::Catalog;
use super::record::{DiskEncryptionSetRecord, Kind, Rev};
use super::rows::DES_COLUMNS;
use super::{Change, identities, lock_rows, resources};

impl DatabaseCatalog {
    pub(super) fn add_des(&self, record: &DiskEncryptionSetRecord) -> Result<(), CatalogError> {
        let name = &record.name;
        self.db().transaction(Mode::Write, |db| {
            identities::check_user_assigned(db, &record.identity)?;
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
            Ok(())
        })
    }

    pub(super) fn change_des(
        &self,
        rev: Rev,
        record: &DiskEncryptionSetRecord,
    ) -> Result<Rev, CatalogError> {
        let name = &record.name;
        let changed = self.db().transaction(Mode::Write, |db| {
            identities::check_user_assigned(db, &record.identity)?;
            let changed = db.execute(
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
            if changed > 0 {
                db.execute(
                    "DELETE FROM identities WHERE des = ? AND object_id <> ?",
                    params![name, record.principal_id.to_string()],
                )?;
            }
            Ok::<_, CatalogError>(changed)
        })?;
        if changed == 0 {
            self.des(name)?;
            return Err(stale(Kind::DiskEncryptionSet, name));
        }
        Ok(Rev(rev.0 + 1))
    }

    pub(super) fn remove_des(&self, name: &str, rev: Rev) -> Result<(), CatalogError> {
        let deleted = self.db().transaction(Mode::Write, |db| {
            lock_rows::refuse(db, Kind::DiskEncryptionSet, name, Change::Delete)?;
            resources::refuse_set_in_use(db, name)?;
            let sql = "DELETE FROM disk_encryption_sets WHERE name = ? AND rev = ?";
            Ok::<_, CatalogError>(db.execute(sql, params![name, rev.0])?)
        })?;
        if deleted == 0 {
            self.des(name)?;
            return Err(stale(Kind::DiskEncryptionSet, name));
        }
        Ok(())
    }
}
