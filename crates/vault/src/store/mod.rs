//! The database of an embedded vault: `vault.db`.

mod columns;
mod deleted;
mod keys;
mod retries;
mod uses;
mod vault;

pub(crate) use deleted::*;
pub(crate) use keys::*;
pub(crate) use retries::*;
pub(crate) use uses::*;
pub use vault::VaultDeletion;
pub(crate) use vault::*;
