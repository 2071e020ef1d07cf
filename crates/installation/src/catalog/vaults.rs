//! Adding, changing and removing vaults in the catalog's database.

use database::{Connection, Mode, params};

use super::columns::{constraint, json, stale, time_text};
use super::database_catalog::DatabaseCatalog;
use super::error::CatalogError;
use super::interface::Catalog;
use super::purged;
use super::record::{Kind, Rev, VaultRecord};
use super::rows::VAULT_COLUMNS;

impl DatabaseCatalog {
    pub(super) fn add_vault(&self, record: &VaultRecord) -> Result<(), CatalogError> {
        insert(&self.db(), record)
    }

    pub(super) fn change_vault(&self, rev: Rev, record: &VaultRecord) -> Result<Rev, CatalogError> {
        let name = &record.name;
        let changed = self
            .db()
            .execute(
                "UPDATE vaults SET rev = rev + 1, url = ?, kind = ?, created = ? \
                 WHERE name = ? AND rev = ?",
                params![
                    record.url,
                    json(name, &record.kind)?,
                    time_text(name, record.created)?,
                    name,
                    rev.0,
                ],
            )
            .map_err(|e| constraint(e, Kind::Vault, name, None))?;
        if changed == 0 {
            self.vault(name)?;
            return Err(stale(Kind::Vault, name));
        }
        Ok(Rev(rev.0 + 1))
    }

    pub(super) fn remove_vault(&self, name: &str, rev: Rev) -> Result<(), CatalogError> {
        let url = self.vault(name)?.record.url;
        let deleted = self.db().transaction(Mode::Write, |db| {
            if let Some(set) = set_with_key_in(db, &url)? {
                return Err(CatalogError::VaultInUse {
                    name: name.into(),
                    set,
                });
            }
            let sql = "DELETE FROM vaults WHERE name = ? AND rev = ?";
            Ok(db.execute(sql, params![name, rev.0])?)
        })?;
        if deleted == 0 {
            self.vault(name)?;
            return Err(stale(Kind::Vault, name));
        }
        Ok(())
    }
}

/// Adds a vault.
pub(super) fn insert(db: &Connection, record: &VaultRecord) -> Result<(), CatalogError> {
    let VaultRecord {
        name,
        url,
        kind,
        created,
    } = record;
    // Before, so that a crash in between leaves nothing that says of the new one that it is gone.
    purged::forget(db, Some(url))?;
    db.execute(
        &format!("INSERT INTO vaults ({VAULT_COLUMNS}) VALUES (?, 1, ?, ?, ?)"),
        params![name, url, json(name, kind)?, time_text(name, *created)?],
    )
    .map_err(|e| constraint(e, Kind::Vault, name, None))?;
    Ok(())
}

/// The first disk encryption set whose active key, or that of anything under it, is in a vault.
fn set_with_key_in(db: &Connection, vault_url: &str) -> Result<Option<String>, CatalogError> {
    let keys = format!("{vault_url}/keys/");
    // Compared as bytes: LIKE would take '_' for anything.
    let sql = "SELECT name FROM (
                   SELECT name, key_url FROM disk_encryption_sets
                   UNION ALL SELECT des, key_url FROM resources WHERE des IS NOT NULL
                   UNION ALL SELECT des, key_url FROM layer_uses WHERE des IS NOT NULL
               ) AS keys WHERE substr(key_url, 1, length(?1)) = ?1 ORDER BY name LIMIT 1";
    Ok(db.value(sql, params![keys])?)
}
