//! The part of a catalog on a server that has the vaults there.

use super::error::CatalogError;
use super::record::VaultRecord;

/// The part of a catalog on a server that has the schemas of vaults. Who changes them has the lock of the vaults.
pub trait ServerVaults: Send + Sync {
    /// The schema of the vault of that name, whether it is there or not.
    fn vault_schema(&self, name: &str) -> String;

    /// Whether it is there.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn has_vault_schema(&self, name: &str) -> Result<bool, CatalogError>;

    /// The schemas of all vaults, whether the catalog knows these or not.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn vault_schemas(&self) -> Result<Vec<String>, CatalogError>;

    /// Makes an empty schema for a vault that is to be made; its name.
    ///
    /// # Errors
    /// [`CatalogError::MakeSchema`].
    fn stage_vault(&self) -> Result<String, CatalogError>;

    /// Gives a schema that is whole the name of its vault, and registers that, in one transaction.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] when the name is taken.
    fn publish_vault(&self, staged: &str, record: &VaultRecord) -> Result<(), CatalogError>;

    /// Forgets a vault, and has its schema, if there is one, called one that is to be removed, in one transaction.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn retire_vault(&self, name: &str) -> Result<(), CatalogError>;

    /// Removes the schemas of vaults that were purged, and of those whose makers did not finish.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn sweep_vault_schemas(&self) -> Result<(), CatalogError>;
}
