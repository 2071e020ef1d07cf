//! How users prove who they are: passwords, as their hashes, and logins by a device code that wait to be approved.
//!
//! The copy of the catalog has none of it: after the loss of the catalog users get new passwords.

use time::OffsetDateTime;
use uuid::Uuid;

use super::error::CatalogError;

/// The step of the catalog's schema that adds the tables. A login goes with the identity that it was approved for.
pub(super) const TABLES: &str = "
CREATE TABLE passwords (
    identity TEXT PRIMARY KEY REFERENCES identities (object_id) ON DELETE CASCADE,
    hash     TEXT NOT NULL
) STRICT;
CREATE TABLE device_logins (
    user_code   TEXT PRIMARY KEY,
    device_hash BLOB NOT NULL UNIQUE,
    peer        TEXT NOT NULL,
    resource    TEXT NOT NULL,
    created     TEXT NOT NULL,
    expires     TEXT NOT NULL,
    identity    TEXT REFERENCES identities (object_id) ON DELETE CASCADE
) STRICT;
";

/// The step that adds what is remembered of assertions, so that none is used twice.
pub(super) const USED_ASSERTIONS: &str = "
CREATE TABLE used_assertions (
    hash    BLOB PRIMARY KEY,
    expires INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// A login by a device code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceLogin {
    /// What the user reads and the operator types.
    pub user_code: String,
    /// SHA-256 of what the device shows.
    pub device_hash: [u8; 32],
    /// From where it was asked for.
    pub peer: String,
    /// For which service tokens are wanted.
    pub resource: String,
    /// When.
    pub created: OffsetDateTime,
    /// Until when it can be approved and used.
    pub expires: OffsetDateTime,
    /// Object id of the identity for which it was approved.
    pub identity: Option<Uuid>,
}

/// The part of the catalog that is about logins of users.
pub trait LoginCatalog: Send + Sync {
    /// The hash of an identity's password, if it has one.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn password(&self, identity: Uuid) -> Result<Option<String>, CatalogError>;

    /// Gives an identity a password, or takes it away.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] when there is no such identity.
    fn set_password(&self, identity: Uuid, hash: Option<&str>) -> Result<(), CatalogError>;

    /// Notes that an assertion with that hash was used, which counts until it expires, and forgets those that have
    /// expired; whether it is the first time.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn use_assertion(&self, hash: &[u8; 32], expires: OffsetDateTime)
    -> Result<bool, CatalogError>;

    /// Notes a login by a device code, and forgets those that have expired; whether there was room among the `most`
    /// that wait, and the `most_of_peer` of its peer.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn insert_device_login(
        &self,
        login: &DeviceLogin,
        most: usize,
        most_of_peer: usize,
    ) -> Result<bool, CatalogError>;

    /// The logins that wait or were approved.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn device_logins(&self) -> Result<Vec<DeviceLogin>, CatalogError>;

    /// Approves a login that waits; whether there is one.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn approve_device_login(&self, user_code: &str, identity: Uuid) -> Result<bool, CatalogError>;

    /// Takes a login out that was approved, so that it is used once; the one with that hash, whatever becomes of it.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn take_device_login(
        &self,
        device_hash: &[u8; 32],
    ) -> Result<Option<DeviceLogin>, CatalogError>;

    /// Forgets a login; whether there was one.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn delete_device_login(&self, user_code: &str) -> Result<bool, CatalogError>;
}
