//! What keys are used for: looking at them, wrapping and unwrapping, random bytes.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::queue::KeyUse;
use super::subject::Subject;
use super::vault::EmbeddedVault;
use crate::private_keys::PrivateKey;
use crate::store::KeyRow;
use crate::{
    Caller, EncryptionAlgorithm, KeyBundle, KeyId, KeyPermission, KeyVault, VaultError,
    VaultErrorCode, WrapAlgorithm, Wrapped, rsa_key, store,
};
use keys::{LockedBytes, fill_random};

/// Azure's limit on random bytes that are asked for at once.
const MAX_RANDOM: usize = 128;

impl EmbeddedVault {
    /// Encrypts a secret key under a key, by any algorithm.
    ///
    /// # Errors
    /// A [`VaultError`] whose code says which check failed.
    pub fn wrap(
        &self,
        caller: &Caller,
        key: &KeyId,
        algorithm: EncryptionAlgorithm,
        secret: &[u8],
    ) -> Result<Wrapped, VaultError> {
        let key_use = key_use(caller, key, "KeyWrap", KeyPermission::WrapKey);
        self.public_operation(key_use, algorithm, secret)
    }

    /// Encrypts data under a key.
    ///
    /// # Errors
    /// A [`VaultError`] whose code says which check failed.
    pub fn encrypt(
        &self,
        caller: &Caller,
        key: &KeyId,
        algorithm: EncryptionAlgorithm,
        plaintext: &[u8],
    ) -> Result<Wrapped, VaultError> {
        let key_use = key_use(caller, key, "KeyEncrypt", KeyPermission::Encrypt);
        self.public_operation(key_use, algorithm, plaintext)
    }

    /// Decrypts what [`wrap`](Self::wrap) returned; `key.version` must be given.
    ///
    /// # Errors
    /// A [`VaultError`]; everything that is wrong with `wrapped` itself is one uniform error.
    pub fn unwrap(
        &self,
        caller: &Caller,
        key: &KeyId,
        algorithm: EncryptionAlgorithm,
        wrapped: &[u8],
    ) -> Result<LockedBytes, VaultError> {
        let key_use = key_use(caller, key, "KeyUnwrap", KeyPermission::UnwrapKey);
        self.private_operation(key_use, algorithm, wrapped)
    }

    /// Decrypts what [`encrypt`](Self::encrypt) returned; `key.version` must be given.
    ///
    /// # Errors
    /// A [`VaultError`]; everything that is wrong with `ciphertext` itself is one uniform error.
    pub fn decrypt(
        &self,
        caller: &Caller,
        key: &KeyId,
        algorithm: EncryptionAlgorithm,
        ciphertext: &[u8],
    ) -> Result<LockedBytes, VaultError> {
        let key_use = key_use(caller, key, "KeyDecrypt", KeyPermission::Decrypt);
        self.private_operation(key_use, algorithm, ciphertext)
    }

    /// Random bytes, for any identity that may do anything here.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`], [`VaultErrorCode::BadParameter`] for more than 128 at once.
    pub fn random_bytes(
        &self,
        caller: &Caller,
        count: usize,
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        self.audited(caller, &Subject::vault("GetRandomBytes"), |db| {
            self.admit_from(db, caller, KeyPermission::Get)?;
            if store::permissions(db, caller.object_id)?.is_empty() {
                self.authorize(db, caller, KeyPermission::Get)?;
            }
            if !(1..=MAX_RANDOM).contains(&count) {
                return Err(VaultError::new(
                    VaultErrorCode::BadParameter,
                    format!(
                        "{count} is no number of random bytes for one call; ask for 1 to {MAX_RANDOM}"
                    ),
                ));
            }
            let mut bytes = Zeroizing::new(vec![0; count]);
            fill_random(&mut bytes).map_err(|e| {
                VaultError::caused(VaultErrorCode::Internal, "no bytes were made", e)
            })?;
            Ok(bytes)
        })
    }

    fn public_operation(
        &self,
        key_use: KeyUse,
        algorithm: EncryptionAlgorithm,
        plaintext: &[u8],
    ) -> Result<Wrapped, VaultError> {
        let (value, row) = self.work(key_use, |row| {
            // The private key is not needed; that it opens shows that the public one is its own.
            self.material(row)?;
            rsa_key::encrypt(&row.n, &row.e, algorithm, plaintext)
        })?;
        Ok(Wrapped {
            key_version: row.version.clone(),
            value,
        })
    }

    fn private_operation(
        &self,
        key_use: KeyUse,
        algorithm: EncryptionAlgorithm,
        ciphertext: &[u8],
    ) -> Result<LockedBytes, VaultError> {
        let (secret, _) = self.work(key_use, |row| {
            self.private_key(row)?.decrypt(algorithm, ciphertext)
        })?;
        Ok(secret)
    }

    fn private_key(&self, row: &KeyRow) -> Result<Arc<dyn PrivateKey>, VaultError> {
        if let Some(key) = self.cache.get(row) {
            return Ok(key);
        }
        let key = self.keys.open(&self.material(row)?)?;
        self.cache.keep(row, &key);
        Ok(key)
    }
}

fn key_use(
    caller: &Caller,
    key: &KeyId,
    operation: &'static str,
    permission: KeyPermission,
) -> KeyUse {
    KeyUse {
        caller: caller.clone(),
        key: key.clone(),
        operation,
        permission,
    }
}

impl KeyVault for EmbeddedVault {
    fn url(&self) -> &str {
        &self.url
    }

    fn key(&self, caller: &Caller, key: &KeyId) -> Result<KeyBundle, VaultError> {
        let row = self.look(key_use(caller, key, "KeyGet", KeyPermission::Get))?;
        let settings = self.read(|db| self.settings_in(db))?;
        Ok(self.bundle(&settings, &row))
    }

    fn wrap_key(
        &self,
        caller: &Caller,
        key: &KeyId,
        algorithm: WrapAlgorithm,
        secret: &[u8],
    ) -> Result<Wrapped, VaultError> {
        self.wrap(caller, key, algorithm.into(), secret)
    }

    fn unwrap_key(
        &self,
        caller: &Caller,
        key: &KeyId,
        algorithm: WrapAlgorithm,
        wrapped: &[u8],
    ) -> Result<LockedBytes, VaultError> {
        self.unwrap(caller, key, algorithm.into(), wrapped)
    }
}
