//! A vault's master key, and what is sealed under it.

use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{VaultError, VaultErrorCode};
use keys::{SealingError, SealingKey};

/// A vault's master key.
pub(crate) struct MasterKey(pub(super) SealingKey);

/// Which key at rest is meant. It is bound to the ciphertext as associated data, so that neither
/// can one key be put in the place of another, nor a public key be replaced by one whose private
/// half an attacker has.
#[derive(Clone, Copy)]
pub(crate) struct Slot<'a> {
    pub vault: Uuid,
    pub key: &'a str,
    pub version: &'a str,
    /// Modulus, big-endian.
    pub n: &'a [u8],
    /// Public exponent, big-endian.
    pub e: &'a [u8],
}

impl Slot<'_> {
    /// Each part of varying length follows its length, so that no two slots have the same data.
    fn associated_data(&self) -> Vec<u8> {
        let mut data = b"sealdisk vault private key v1\0".to_vec();
        data.extend(self.vault.as_bytes());
        let parts = [self.key.as_bytes(), self.version.as_bytes(), self.n, self.e];
        for part in parts {
            data.extend((part.len() as u64).to_le_bytes());
            data.extend(part);
        }
        data
    }
}

impl MasterKey {
    /// Encrypts the key of backups that an earlier master key had.
    pub fn seal_backup_key(&self, vault: Uuid, key: &SealingKey) -> Result<Vec<u8>, VaultError> {
        Ok(self.0.seal(&backup_key_slot(vault), key.expose())?)
    }

    /// Decrypts what [`MasterKey::seal_backup_key`] returned.
    pub fn open_backup_key(&self, vault: Uuid, sealed: &[u8]) -> Result<SealingKey, VaultError> {
        let bytes = self.0.open(&backup_key_slot(vault), sealed)?;
        Ok(SealingKey::from_bytes(&bytes)?)
    }

    /// The key itself, for a backup that is to have it.
    pub fn expose(&self) -> &[u8] {
        self.0.expose()
    }

    /// The key with those bytes, from a backup.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, VaultError> {
        SealingKey::from_bytes(bytes).map(Self).map_err(unavailable)
    }

    /// A value that tells whether a master key is the one that the vault was made with, and that
    /// reveals nothing about it.
    pub fn check_value(&self, vault: Uuid) -> Result<[u8; 32], VaultError> {
        let purpose = b"sealdisk vault master key check v1\0";
        Ok(self.0.derive(&[purpose, vault.as_bytes()])?)
    }

    /// Encrypts the private part of a key for storing: nonce, ciphertext, tag.
    pub fn seal(&self, slot: &Slot<'_>, private_key: &[u8]) -> Result<Vec<u8>, VaultError> {
        Ok(self.0.seal(&slot.associated_data(), private_key)?)
    }

    /// Decrypts what [`MasterKey::seal`] returned for the same slot.
    pub fn open(&self, slot: &Slot<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        self.0.open(&slot.associated_data(), sealed).map_err(|_| {
            VaultError::new(
                VaultErrorCode::Tampered,
                format!(
                    "the stored key '{}' version {} fails its authentication: the vault's \
                         database was damaged or tampered with; restore it from a backup",
                    slot.key, slot.version
                ),
            )
        })
    }

    /// The key that the signing key of the audit log is sealed under.
    pub fn for_audit(&self) -> Result<SealingKey, VaultError> {
        Ok(self.0.subkey(b"sealdisk vault audit key v1\0")?)
    }

    /// The key that backups are encrypted under.
    pub fn for_backups(&self) -> Result<SealingKey, VaultError> {
        Ok(self.0.subkey(b"sealdisk vault backup key v1\0")?)
    }
}

fn backup_key_slot(vault: Uuid) -> Vec<u8> {
    [
        b"sealdisk vault earlier backup key v1\0".as_slice(),
        vault.as_bytes(),
    ]
    .concat()
}

pub(super) fn unavailable(source: SealingError) -> VaultError {
    let what = "the vault's master key is unavailable";
    VaultError::caused(VaultErrorCode::MasterKey, what, source)
}
