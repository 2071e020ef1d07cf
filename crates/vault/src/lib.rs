//! Key vaults: RSA keys that never leave them, behind one trait.
//!
//! The rest of the program knows a vault only as [`KeyVault`]; the embedded one is the default,
//! the same engine served over HTTPS and HSMs come beside it without touching callers.

pub mod audit;
pub mod sqlite;

use keys::LockedBytes;

mod algorithm;
mod bundle;
mod caller;
mod clock;
mod database;
mod embedded;
mod error;
pub mod hsm;
mod key_params;
mod master;
mod names;
mod permission;
mod private_keys;
mod refusal;
pub mod remote;
mod rotation;
mod rsa_key;
mod secret_file;
mod store;
#[cfg(test)]
mod tests;
mod used;

pub use algorithm::{EncryptionAlgorithm, WrapAlgorithm};
pub use bundle::{AttributeChange, DeletedKey, JsonWebKey, KeyAttributes, KeyBundle};
pub use caller::{CHECK_HEADER, Caller, DISK_HEADER, LAYER_HEADER, Origin, Purpose};
pub use clock::{Clock, SystemClock};
pub use database::VaultDatabase;
pub use embedded::{Due, EmbeddedVault, Resealed, Throttle};
pub use error::{AzureError, VaultError, VaultErrorCode, Verdict};
pub use key_params::{
    DEFAULT_RETENTION_DAYS, KeyChange, KeyOps, NewKey, Page, RETENTION_DAYS, Tags, VaultSettings,
};
pub use master::{MasterPlace, MasterSource};
pub use names::{
    KeyUrl, check_key_name, embedded_vault_name, normal_vault_name, same_key_url, vault_url,
};
pub use permission::{KeyPermission, Permissions};
pub use private_keys::{
    KeyType, NewPrivateKey, PrivateKey, PrivateKeyId, PrivateKeys, SoftwareKeys,
};
pub use rotation::{
    LifetimeAction, Period, RotationAction, RotationActionKind, RotationAttributes, RotationPolicy,
    RotationTrigger,
};
pub use rsa_key::{KeyMaterial, KeySize, PrivateJwk, RsaComponents, RsaKey};
pub use secret_file::{read_credential, read_secret_file};
pub use store::VaultDeletion;
pub use used::{KeyUsed, NAMED_DISKS};

/// A key of a vault, of a certain version or of whatever version is the latest. Names are compared
/// without case, as Azure compares them.
#[derive(Debug, Clone, Eq)]
pub struct KeyId {
    /// The key's name in its vault.
    pub name: String,
    /// 32 hexadecimal digits, as Azure has them; `None` is the latest version.
    pub version: Option<String>,
}

impl PartialEq for KeyId {
    fn eq(&self, other: &Self) -> bool {
        self.name.eq_ignore_ascii_case(&other.name) && self.version == other.version
    }
}

/// A wrapped secret together with the key version that wrapped it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// The version that did it; unwrapping must name it.
    pub key_version: String,
    /// The ciphertext.
    pub value: Vec<u8>,
}

/// The operations on keys that disks need, whichever vault has the key. Each is checked against the
/// caller's access policy, the key's enabled flag, not-before and expiry, and each is recorded in
/// the vault's audit log, refusals too.
pub trait KeyVault: Send + Sync {
    /// The vault's URL, as `https://NAME.vault.localhost`: what an envelope records.
    fn url(&self) -> &str;

    /// A key's public part and attributes, also of one that may not be used at present.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`] without the permission `get`, [`VaultErrorCode::KeyNotFound`].
    fn key(&self, caller: &Caller, key: &KeyId) -> Result<KeyBundle, VaultError>;

    /// Encrypts `secret` under the public key of `key`.
    ///
    /// # Errors
    /// A [`VaultError`] whose code says which check failed.
    fn wrap_key(
        &self,
        caller: &Caller,
        key: &KeyId,
        algorithm: WrapAlgorithm,
        secret: &[u8],
    ) -> Result<Wrapped, VaultError>;

    /// Decrypts what [`KeyVault::wrap_key`] returned; `key.version` must be given.
    ///
    /// # Errors
    /// A [`VaultError`]; everything that is wrong with `wrapped` itself is one uniform error.
    fn unwrap_key(
        &self,
        caller: &Caller,
        key: &KeyId,
        algorithm: WrapAlgorithm,
        wrapped: &[u8],
    ) -> Result<LockedBytes, VaultError>;
}
