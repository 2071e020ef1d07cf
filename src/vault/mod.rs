//! Key vaults: RSA keys that never leave them, behind one trait.
//!
//! The rest of the program knows a vault only as [`KeyVault`]; the embedded one is the default,
//! the same engine served over HTTPS and HSMs come beside it without touching callers.

use uuid::Uuid;

use crate::keys::LockedBytes;

mod bundle;
mod clock;
mod embedded;
mod error;
mod master;
mod names;
mod permission;
mod refusal;
pub mod remote;
mod rsa_key;
mod secret_file;
mod store;
#[cfg(test)]
mod tests;

pub use bundle::{AttributeChange, JsonWebKey, KeyAttributes, KeyBundle};
pub use clock::{Clock, SystemClock};
pub use embedded::EmbeddedVault;
pub use error::{VaultError, VaultErrorCode, Verdict};
pub use names::{KeyUrl, check_key_name, embedded_vault_name, normal_vault_name, vault_url};
pub use permission::{KeyPermission, Permissions};
pub use rsa_key::KeySize;
pub use store::AuditRecord;

/// The algorithm that wraps a DEK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WrapAlgorithm {
    /// RSA-OAEP with SHA-256 and MGF1-SHA-256 (RFC 8017 §7.1), Azure's `RSA-OAEP-256`.
    RsaOaep256,
}

/// Who asks: the object id (Azure's `principalId`) of an identity that the vault's access policies
/// are keyed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The identity.
    pub object_id: Uuid,
}

/// A key of a vault, of a certain version or of whatever version is the latest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyId {
    /// The key's name in its vault.
    pub name: String,
    /// 32 hexadecimal digits, as Azure has them; `None` is the latest version.
    pub version: Option<String>,
}

/// A wrapped secret together with the key version that wrapped it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// The version that did it; unwrapping must name it.
    pub key_version: String,
    /// The ciphertext.
    pub value: Vec<u8>,
}

/// The operations on keys that disks need, whichever vault has the key. Each is checked against the caller's access policy, the
/// key's enabled flag, not-before and expiry, and each is recorded in the vault's audit log,
/// refusals too.
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
