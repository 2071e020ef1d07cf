//! One installation: its catalog, the headers of its disks, its vaults, and the identities that may use
//! their keys.

mod access_tokens;
mod applications;
mod audit_records;
pub mod backup;
pub mod catalog;
pub mod envelope;
mod error;
mod federation;
pub mod files;
mod found_vaults;
mod host;
mod identities;
mod installation;
mod key_access;
mod known_server;
mod leftovers;
mod log_databases;
mod logins;
pub mod migrate;
mod on_server;
mod place;
mod policy_lock;
mod remote_vaults;
mod retry;
mod runtime;
mod vault_backends;
mod vault_lifecycle;
mod vaults;

pub use access_tokens::AccessToken;
pub use audit_records::{DesOperation, KeyEvent, code_of};
pub use database::postgres::ServerUrl;
pub use error::InstallationError;
pub use federation::{AssertionError, Trust};
pub use found_vaults::{FoundVaults, VaultsLock};
pub use host::{
    HOST_VARIABLE, check_host_name, given_host_name, host_may_change, is_this_host, name_host,
    name_of_host, this_host,
};
pub use identities::{DeletedIdentity, IdentitySecret, check_name as check_identity_name};
pub use installation::{Installation, default_state_dir, prepared_state_dir};
pub use key_access::KeyAccess;
pub use leftovers::RESTORING;
pub use log_databases::{INSTALLATION_LOG, LogDatabase, vault_log_name};
pub use logins::{DEVICE_LIFETIME, DeviceState, NewDeviceLogin};
pub use place::{CATALOG_VARIABLE, CatalogAt, Place};
pub use policy_lock::PolicyLock;
pub use retry::retrying;
pub use runtime::{goes_at_logout, runtime_dir, runtime_map};
pub use vault_lifecycle::{DeletedVault, Reconcile};
pub use vaults::{PLATFORM_VAULT, platform_key_url, platform_notice, vault_notice};
