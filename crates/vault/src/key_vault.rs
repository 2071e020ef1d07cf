//! The operations on keys that disks need, whichever vault has the key.

use keys::LockedBytes;

use super::{Caller, KeyBundle, KeyId, VaultError, WrapAlgorithm};

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
    /// [`VaultErrorCode::Forbidden`](crate::VaultErrorCode::Forbidden) without the permission `get`, [`VaultErrorCode::KeyNotFound`](crate::VaultErrorCode::KeyNotFound).
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
