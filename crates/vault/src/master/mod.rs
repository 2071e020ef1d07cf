//! The master key of an embedded vault, and what is stored under it.
//!
//! The master key is 32 random bytes. Where it is, is the owner's choice ([`MasterSource`]) and stands in
//! the vault's own database; whoever has only the database has no key. A vault that never was given a
//! choice takes the systemd credential `sealdisk-vault-NAME` when systemd provides one, else the file
//! `master.key` beside the database.

mod source;
mod tpm;

use std::path::{Path, PathBuf};

use uuid::Uuid;
use zeroize::Zeroizing;

pub use self::source::{MasterPlace, MasterSource};
pub(super) use self::source::{destroy, is_own_file};
use super::{VaultError, VaultErrorCode};
use keys::{FileGuard, SealingError, SealingKey};

/// The file of a vault that was made without a choice.
pub(super) const DEFAULT_FILE: &str = "master.key";

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
        match default_credential(vault_name) {
            Some(path) => SealingKey::load(&path, FileGuard::Systemd),
            None => SealingKey::create(&dir.join(DEFAULT_FILE)),
        }
        .map(Self)
        .map_err(unavailable)
    }

    /// Reads it from where it is; without a source, the systemd credential when there is one, or else
    /// `master.key` in `dir`.
    pub fn load(
        dir: &Path,
        vault_name: &str,
        source: Option<&MasterSource>,
    ) -> Result<Self, VaultError> {
        if let Some(source) = source {
            return source.load(dir);
        }
        match default_credential(vault_name) {
            Some(path) => SealingKey::load(&path, FileGuard::Systemd),
            None => SealingKey::load(&dir.join(DEFAULT_FILE), FileGuard::Mode),
        }
        .map(Self)
        .map_err(unavailable)
    }

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

fn default_credential(vault_name: &str) -> Option<PathBuf> {
    credential(&format!("sealdisk-vault-{vault_name}")).filter(|path| path.exists())
}

/// The systemd credential that a vault without a choice takes, when there is one.
pub(super) fn default_source(vault_name: &str) -> Option<MasterSource> {
    default_credential(vault_name).map(|_| MasterSource::Credential {
        name: format!("sealdisk-vault-{vault_name}"),
    })
}

/// The file of a systemd credential; `None` where systemd provides none at all.
fn credential(name: &str) -> Option<PathBuf> {
    Some(PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?).join(name))
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
        let master = MasterKey::load(dir.path(), "vault", None).unwrap();
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
        let error = MasterKey::load(dir.path(), "vault", None).err().unwrap();
        assert!(error.message.contains("chmod 600"), "{error}");
        std::fs::remove_file(&path).unwrap();
        let error = MasterKey::load(dir.path(), "vault", None).err().unwrap();
        assert_eq!(error.code, VaultErrorCode::MasterKey);
    }
}
