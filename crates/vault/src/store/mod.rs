//! The database of an embedded vault: `vault.db`, or a schema of a server.

mod columns;
mod deleted;
mod keys;
mod retries;
mod schema;
mod uses;
mod vault;

pub(crate) use deleted::*;
pub(crate) use keys::*;
pub(crate) use retries::*;
pub(crate) use schema::SCHEMA;
pub use schema::{VAULT_APPLICATION_ID, VAULT_DATABASE, VAULT_POSTGRES_STEPS};
pub(crate) use uses::*;
pub use vault::VaultDeletion;
pub(crate) use vault::*;
