//! Making a master key, and reading it from where it is.

use std::path::{Path, PathBuf};

use super::key::{MasterKey, unavailable};
use super::source::{DEFAULT_FILE, MasterSource, credential};
use crate::VaultError;
use keys::{FileGuard, SealingKey};

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

    /// The file that [`MasterKey::load`] reads, where it is known without a look at anything else.
    pub fn expected_file(
        dir: &Path,
        vault_name: &str,
        source: Option<&MasterSource>,
    ) -> Option<PathBuf> {
        match source {
            None => default_credential(vault_name).or_else(|| Some(dir.join(DEFAULT_FILE))),
            Some(source) => source.file_of(dir),
        }
    }
}

fn default_credential(vault_name: &str) -> Option<PathBuf> {
    credential(&format!("sealdisk-vault-{vault_name}")).filter(|path| path.exists())
}

/// The systemd credential that a vault without a choice takes, when there is one.
pub(crate) fn default_source(vault_name: &str) -> Option<MasterSource> {
    default_credential(vault_name).map(|_| MasterSource::Credential {
        name: format!("sealdisk-vault-{vault_name}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VaultErrorCode;
    use crate::master::Slot;
    use uuid::Uuid;

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
