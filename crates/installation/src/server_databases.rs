//! What an installation has on the server of its catalog besides that.

use database::Database;
use database::OpenError;
use database::postgres::{self, Schema, ServerUrl};
use vault::audit::{AUDIT_APPLICATION_ID, AUDIT_DATABASE, AUDIT_POSTGRES_STEPS};
use vault::{VAULT_APPLICATION_ID, VAULT_DATABASE, VAULT_POSTGRES_STEPS};

/// A vault, with its log, in a schema of its own.
pub(crate) const VAULT: Schema = Schema {
    what: VAULT_DATABASE,
    application_id: VAULT_APPLICATION_ID,
    steps: VAULT_POSTGRES_STEPS,
};

/// The installation's own log, beside the catalog.
pub(crate) const LOG: Schema = Schema {
    what: AUDIT_DATABASE,
    application_id: AUDIT_APPLICATION_ID,
    steps: AUDIT_POSTGRES_STEPS,
};

/// The keys that the servers of an installation share, beside the catalog.
pub(crate) const KEYS: Schema = Schema {
    what: "database of shared keys",
    application_id: 0x5EA1_05EC,
    steps: &[include_str!("shared_keys/postgres.sql")],
};

/// Connects to the database of a vault that was made in that schema.
///
/// # Errors
/// [`OpenError`]; [`OpenError::NoSchema`] where there is none.
pub(crate) fn open_vault(url: &ServerUrl) -> Result<Database, OpenError> {
    there(postgres::open_made(url.as_str(), &VAULT)?, url)
}

/// The same for who only looks.
///
/// # Errors
/// As [`open_vault`].
pub(crate) fn look_at_vault(url: &ServerUrl) -> Result<Database, OpenError> {
    there(postgres::open_as_it_is(url.as_str(), &VAULT)?, url)
}

fn there(found: Option<Database>, url: &ServerUrl) -> Result<Database, OpenError> {
    found.ok_or_else(|| OpenError::NoSchema {
        place: url.to_string(),
        what: VAULT.what,
    })
}
