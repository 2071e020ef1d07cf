//! The vaults that are on the server of the catalog, each in a schema of its own beside that of the catalog.
//!
//! A schema is named after the installation and the vault: who has the catalog's row finds it without another look, an
//! operator sees whose it is, and of several installations in one database none meets another's. A vault that is being
//! made, and one that was purged, have names of which no vault can be, so that its name says how far it is:
//!
//! ```text
//! sealdisk_0123456789ab_making_…    until it is whole; nobody has used it
//! sealdisk_0123456789ab_vault_NAME  it is in the catalog, by the transaction that gave it this name
//! sealdisk_0123456789ab_purged_…    until it is removed; its keys are destroyed
//! ```

use database::postgres::{drop_schema, has_schema, make_schema, rename_schema, schemas};
use database::{Connection, ErrorKind, Mode, params};
use uuid::Uuid;

use super::database_catalog::DatabaseCatalog;
use super::error::CatalogError;
use super::record::VaultRecord;
use super::server_vaults::ServerVaults;
use super::{noted, vaults};

/// How the names of an installation's schemas begin.
fn beginning(installation: Uuid) -> String {
    let id = installation.simple().to_string();
    format!("sealdisk_{}_", &id[..12])
}

/// The schema of a vault. Names of vaults have no underscores, and those of schemas no hyphens.
pub(crate) fn schema_of(installation: Uuid, vault: &str) -> String {
    let vault = vault.replace('-', "_");
    format!("{}vault_{vault}", beginning(installation))
}

/// A name that no other schema has or will have.
fn new_name(installation: Uuid, what: &str) -> String {
    let id = Uuid::new_v4().simple().to_string();
    // PostgreSQL takes 63 bytes of a name.
    format!("{}{what}_{}", beginning(installation), &id[..24])
}

impl DatabaseCatalog {
    fn own_id(&self) -> Uuid {
        self.installation_on_server()
            .map(|own| own.id())
            .unwrap_or_default()
    }

    fn sweep(&self, what: &str) -> Result<(), CatalogError> {
        let beginning = format!("{}{what}_", beginning(self.own_id()));
        let left = schemas(&self.db(), &beginning)?;
        for schema in left {
            drop_schema(&self.db(), &schema)?;
        }
        Ok(())
    }
}

impl ServerVaults for DatabaseCatalog {
    fn vault_schema(&self, name: &str) -> String {
        schema_of(self.own_id(), name)
    }

    fn has_vault_schema(&self, name: &str) -> Result<bool, CatalogError> {
        Ok(has_schema(&self.db(), &self.vault_schema(name))?)
    }

    fn vault_schemas(&self) -> Result<Vec<String>, CatalogError> {
        let beginning = format!("{}vault_", beginning(self.own_id()));
        Ok(schemas(&self.db(), &beginning)?)
    }

    fn stage_vault(&self) -> Result<String, CatalogError> {
        let name = new_name(self.own_id(), "making");
        make_schema(&self.db(), &name).map_err(|source| match source.kind() {
            ErrorKind::Other => CatalogError::MakeSchema { source },
            _ => source.into(),
        })?;
        Ok(name)
    }

    fn publish_vault(&self, staged: &str, record: &VaultRecord) -> Result<(), CatalogError> {
        let schema = self.vault_schema(&record.name);
        self.db().transaction(Mode::Write, |db| {
            rename_schema(db, staged, &schema)?;
            vaults::insert(db, record)
        })
    }

    fn retire_vault(&self, name: &str) -> Result<(), CatalogError> {
        let schema = self.vault_schema(name);
        let purged = new_name(self.own_id(), "purged");
        self.db().transaction(Mode::Write, |db| {
            let db: &Connection = db;
            noted::forget(db, name)?;
            db.execute("DELETE FROM vaults WHERE name = ?", params![name])?;
            if has_schema(db, &schema)? {
                rename_schema(db, &schema, &purged)?;
            }
            Ok::<_, CatalogError>(())
        })
    }

    fn sweep_vault_schemas(&self) -> Result<(), CatalogError> {
        self.sweep("making")?;
        self.sweep("purged")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_schemas_are_plain_short_and_each_vaults_own() {
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let longest = "a-234567890123456789-234";
        let mut names = vec![
            schema_of(one, longest),
            schema_of(one, "a"),
            schema_of(other, "a"),
            new_name(one, "making"),
            new_name(one, "making"),
            new_name(one, "purged"),
        ];
        for name in &names {
            let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            assert!(name.bytes().all(is_plain) && name.len() <= 63, "{name}");
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 6);
    }
}
