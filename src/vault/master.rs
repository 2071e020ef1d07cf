//! The master key of an embedded vault, and what is stored under it.
//!
//! The master key is 32 random bytes in the file `master.key` beside the database (mode 0600), or
//! a systemd credential named `sealdisk-vault-NAME` (`LoadCredentialEncrypted=` seals it to the
//! host's TPM), which is preferred when systemd provides it. Whoever has only the database has no
//! key.

use std::path::{Path, PathBuf};

use uuid::Uuid;
use zeroize::Zeroizing;

use super::{VaultError, VaultErrorCode};
use crate::keys::{FileGuard, SealingError, SealingKey};

/// A vault's master key.
pub(super) struct MasterKey(SealingKey);

/// Which key at rest is meant. It is bound to the ciphertext as associated data, so that neither
/// can one key be put in the place of another, nor a public key be replaced by one whose private
/// half an attacker has.
#[derive(Clone, Copy)]
pub(super) struct Slot<'a> {
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
    /// Takes the systemd credential when there is one, or else makes `master.key` in `dir`; the
    /// caller makes the directory entry durable.
    pub fn create(dir: &Path, vault_name: &str) -> Result<Self, VaultError> {
        match credential(vault_name) {
            Some(path) => SealingKey::load(&path, FileGuard::Systemd),
            None => SealingKey::create(&dir.join("master.key")),
        }
        .map(Self)
        .map_err(unavailable)
    }

    /// Reads the systemd credential when there is one, or else `master.key` in `dir`.
    pub fn load(dir: &Path, vault_name: &str) -> Result<Self, VaultError> {
        match credential(vault_name) {
            Some(path) => SealingKey::load(&path, FileGuard::Systemd),
            None => SealingKey::load(&dir.join("master.key"), FileGuard::Mode),
        }
        .map(Self)
        .map_err(unavailable)
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

fn credential(vault_name: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    let path = PathBuf::from(dir).join(format!("sealdisk-vault-{vault_name}"));
    path.exists().then_some(path)
}

fn unavailable(source: SealingError) -> VaultError {
    let what = "the vault's master key is not to be had";
    VaultError::caused(VaultErrorCode::MasterKey, what, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot<'a>(key: &'a str, version: &'a str) -> Slot<'a> {
        Slot {
            vault: Uuid::from_u128(7),
            key,
            version,
            n: &[200, 1],
            e: &[3],
        }
    }

    #[test]
    fn a_sealed_key_opens_only_in_its_own_slot() {
        let dir = tempfile::tempdir().unwrap();
        let master = MasterKey::create(dir.path(), "vault").unwrap();
        let sealed = master.seal(&slot("k", "1"), b"private").unwrap();
        let master = MasterKey::load(dir.path(), "vault").unwrap();
        assert_eq!(*master.open(&slot("k", "1"), &sealed).unwrap(), b"private");
        let other_vault = Slot {
            vault: Uuid::from_u128(8),
            ..slot("k", "1")
        };
        let other_public = Slot {
            n: &[200],
            e: &[1, 3],
            ..slot("k", "1")
        };
        let others = [slot("k", "2"), slot("l", "1"), slot("k1", "")];
        for other in others.into_iter().chain([other_vault, other_public]) {
            let error = master.open(&other, &sealed).unwrap_err();
            assert_eq!(error.code, VaultErrorCode::Tampered);
        }
        assert!(master.open(&slot("k", "1"), &sealed[1..]).is_err());
    }

    #[test]
    fn a_missing_or_exposed_master_key_says_what_to_do() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        MasterKey::create(dir.path(), "vault").unwrap();
        let path = dir.path().join("master.key");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = MasterKey::load(dir.path(), "vault").err().unwrap();
        assert!(error.message.contains("chmod 600"), "{error}");
        std::fs::remove_file(&path).unwrap();
        let error = MasterKey::load(dir.path(), "vault").err().unwrap();
        assert_eq!(error.code, VaultErrorCode::MasterKey);
    }
}
