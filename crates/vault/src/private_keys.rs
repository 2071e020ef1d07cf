//! Where the private halves of a vault's keys are: sealed in its database, or in a device.

use std::sync::Arc;

use uuid::Uuid;
use zeroize::Zeroizing;

use super::rsa_key::{DecryptingKey, RsaKey};
use super::{EncryptionAlgorithm, KeySize, VaultError};
use keys::LockedBytes;

/// The kind of a key, by where its private half is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// An RSA key that this program uses.
    Rsa,
    /// An RSA key that never leaves a hardware security module.
    RsaHsm,
}

impl KeyType {
    /// Azure's name of it (`kty`).
    pub fn name(self) -> &'static str {
        match self {
            Self::Rsa => "RSA",
            Self::RsaHsm => "RSA-HSM",
        }
    }
}

/// Which key version a private key is made for.
#[derive(Debug, Clone, Copy)]
pub struct PrivateKeyId<'a> {
    /// The vault.
    pub vault: Uuid,
    /// The key's name in it.
    pub key: &'a str,
    /// The version.
    pub version: &'a str,
}

/// A private key that was made or brought in.
pub struct NewPrivateKey {
    /// Modulus, big-endian.
    pub n: Vec<u8>,
    /// Public exponent, big-endian.
    pub e: Vec<u8>,
    /// What finds the key again, or is it. The vault stores it under its master key, bound to the
    /// version and to `n` and `e`.
    pub material: Zeroizing<Vec<u8>>,
}

/// Makes, finds and destroys private keys. The vault does all checks and all bookkeeping.
pub trait PrivateKeys: Send + Sync {
    /// The kind of its keys.
    fn key_type(&self) -> KeyType;

    /// Makes a key.
    ///
    /// # Errors
    /// [`VaultErrorCode::Unreachable`](super::VaultErrorCode::Unreachable) for a device that does
    /// not answer, [`VaultErrorCode::Internal`](super::VaultErrorCode::Internal).
    fn generate(&self, id: &PrivateKeyId<'_>, size: KeySize) -> Result<NewPrivateKey, VaultError>;

    /// Takes a key in that was made elsewhere.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    fn import(&self, id: &PrivateKeyId<'_>, key: &RsaKey) -> Result<NewPrivateKey, VaultError>;

    /// Finds a key again by its [`NewPrivateKey::material`].
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and
    /// [`VaultErrorCode::KeyNotFound`](super::VaultErrorCode::KeyNotFound) when it is gone.
    fn open(&self, material: &[u8]) -> Result<Arc<dyn PrivateKey>, VaultError>;

    /// Destroys a key for good. One that is gone already is no error: a crash may have come between
    /// this and the vault's own bookkeeping.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    fn delete(&self, material: &[u8]) -> Result<(), VaultError>;
}

/// A private key that is ready for use, by several threads at once.
pub trait PrivateKey: Send + Sync {
    /// Decrypts; everything that is wrong with `ciphertext` is one uniform error.
    ///
    /// # Errors
    /// [`VaultErrorCode::UnwrapFailed`](super::VaultErrorCode::UnwrapFailed), or as
    /// [`PrivateKeys::open`].
    fn decrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        ciphertext: &[u8],
    ) -> Result<LockedBytes, VaultError>;
}

/// Private keys that are stored with the vault, as PKCS#8.
pub struct SoftwareKeys;

impl PrivateKeys for SoftwareKeys {
    fn key_type(&self) -> KeyType {
        KeyType::Rsa
    }

    fn generate(&self, id: &PrivateKeyId<'_>, size: KeySize) -> Result<NewPrivateKey, VaultError> {
        self.import(id, &RsaKey::generate(size)?)
    }

    fn import(&self, _: &PrivateKeyId<'_>, key: &RsaKey) -> Result<NewPrivateKey, VaultError> {
        let (n, e) = key.public_parts();
        Ok(NewPrivateKey {
            n: n.to_vec(),
            e: e.to_vec(),
            material: Zeroizing::new(key.der().to_vec()),
        })
    }

    fn open(&self, material: &[u8]) -> Result<Arc<dyn PrivateKey>, VaultError> {
        Ok(Arc::new(DecryptingKey::from_der(material)?))
    }

    /// The sealed key is gone with its row.
    fn delete(&self, _: &[u8]) -> Result<(), VaultError> {
        Ok(())
    }
}

impl PrivateKey for DecryptingKey {
    fn decrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        ciphertext: &[u8],
    ) -> Result<LockedBytes, VaultError> {
        Self::decrypt(self, algorithm, ciphertext)
    }
}
