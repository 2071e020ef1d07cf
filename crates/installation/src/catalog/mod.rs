//! The catalog: which vaults, disk encryption sets and disks this installation knows.
//!
//! It is reached through one trait, so that a database shared by a fleet can stand in for the
//! local SQLite file. Every record is stored with a revision; an update or delete names the
//! revision that it was derived from and is refused when someone else was faster. Rows of disks
//! are an index only: they can be made again from the headers beside the ciphertext.

mod access;
mod access_database;
mod access_rows;
mod arriving;
mod at;
mod columns;
#[cfg(test)]
pub(crate) mod contract;
mod copy;
mod database_catalog;
mod departed;
mod error;
mod federated;
mod file_id;
mod identities;
mod installation_row;
mod interface;
mod lock_rows;
mod locks;
mod locks_database;
mod logins;
mod logins_database;
mod looked;
mod management;
mod management_database;
mod management_rows;
mod moved;
mod moving;
mod noted;
mod operation_rows;
mod operations;
mod operations_database;
mod purged;
mod record;
mod resources;
mod restored;
mod rows;
mod schema;
mod server;
mod sets;
mod settings;
#[cfg(test)]
mod tests;
mod vaults;

pub use access::{Access, AccessCatalog, AccessRecord};
pub use copy::{COPY_FILE, CatalogCopy};
pub use database_catalog::DatabaseCatalog;
pub use departed::{DepartedKey, DepartedRecord, Departure};
pub use error::CatalogError;
pub use federated::{FederatedCredentialRecord, PublicKey};
pub use interface::Catalog;
pub use locks::{Change, Lock, LockCatalog, LockLevel, LockRecord, LockTarget, LocksHeld};
pub use logins::{DeviceLogin, LoginCatalog};
pub use management::{
    DEFAULT_GROUP, GroupRecord, LOCATION, ManagementCatalog, PlacementRecord, RoleAssignmentRecord,
    Touch,
};
pub use moved::MovedRecord;
pub(crate) use moving::{Arrival, MovingCatalog, TABLES};
pub use operations::{DeploymentName, OperationCatalog, OperationRecord, OperationState};
pub use record::{
    DiskEncryptionSetRecord, DiskRecord, DiskState, EncryptionType, IdentityOwner, IdentityRecord,
    InstallationRecord, Kind, LayerUse, Rev, Stored, VaultRecord,
};
pub use restored::RestoredRecord;
pub use settings::{DesIdentity, HsmSettings, VaultKind};
