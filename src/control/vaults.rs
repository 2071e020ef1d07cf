//! The key vaults of an installation, and the vault of its platform-managed key.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use super::files::sync_dir;
use super::{ControlError, Installation};
use crate::catalog::{CatalogError, Kind, VaultKind, VaultRecord};
use crate::vault::{
    AttributeChange, EmbeddedVault, KeySize, KeyVault, Permissions, SystemClock, VaultError,
    VaultErrorCode, embedded_vault_name, normal_vault_name, vault_url,
};

/// The vault of the platform-managed key.
pub(super) const PLATFORM_VAULT: &str = "platform";
/// The platform-managed key.
pub(super) const PLATFORM_KEY: &str = "platform-key";

/// A vault is made under this name and gets its own when it is complete; no vault can be called so.
const STAGING: &str = ".making";

impl Installation {
    /// Makes a vault in which the operator may do everything.
    ///
    /// # Errors
    /// [`CatalogError::Exists`], [`VaultErrorCode::BadParameter`] for a bad or reserved name.
    pub fn create_vault(&self, name: &str) -> Result<EmbeddedVault, ControlError> {
        let name = normal_vault_name(name)?;
        if name == PLATFORM_VAULT {
            return Err(VaultError::new(
                VaultErrorCode::BadParameter,
                "the name 'platform' is reserved for the vault of the platform-managed key, which \
                 is made with the first disk that uses it; choose another name",
            )
            .into());
        }
        let operator = self.operator();
        let made = self.make_vault(&name, |vault| {
            vault.set_policy(&operator, operator.object_id, &Permissions::all())
        })?;
        match made {
            true => self.vault(&name),
            false => Err(CatalogError::Exists {
                kind: Kind::Vault,
                name,
            }
            .into()),
        }
    }

    /// The vault of that name.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], or why it cannot be opened.
    pub fn vault(&self, name: &str) -> Result<EmbeddedVault, ControlError> {
        let record = self.catalog().vault(&name.to_ascii_lowercase())?.record;
        let dir = self.vaults_dir().join(&record.name);
        let clock = Arc::new(SystemClock);
        Ok(EmbeddedVault::open(&dir, &record.name, clock)?)
    }

    /// The vault with that URL, as an envelope or a key URL names it.
    ///
    /// # Errors
    /// [`ControlError::ForeignVault`] for a vault that is not of this kind,
    /// [`CatalogError::NotFound`] for one that this installation does not have.
    pub fn vault_at(&self, url: &str) -> Result<EmbeddedVault, ControlError> {
        let name = embedded_vault_name(url)
            .ok_or_else(|| ControlError::ForeignVault { url: url.into() })?;
        self.vault(name)
    }

    /// As [`vault_at`](Self::vault_at), for the operations that disks need, of any kind of vault.
    ///
    /// # Errors
    /// As [`vault_at`](Self::vault_at).
    pub(super) fn key_vault_at(&self, url: &str) -> Result<Box<dyn KeyVault>, ControlError> {
        Ok(Box::new(self.vault_at(url)?))
    }

    /// The vault of the platform-managed key; the first call makes both.
    pub(super) fn platform_vault(&self) -> Result<EmbeddedVault, ControlError> {
        match self.vault(PLATFORM_VAULT) {
            Err(ControlError::Catalog(CatalogError::NotFound { .. })) => {}
            found => return found,
        }
        let (operator, platform) = (self.operator(), self.platform());
        // Key and policies are made with the vault, once: an operator who takes a permission from
        // the platform's identity later is not overruled.
        self.make_vault(PLATFORM_VAULT, |vault| {
            let attributes = AttributeChange::default();
            vault.set_policy(&operator, operator.object_id, &Permissions::all())?;
            vault.set_policy(&operator, platform.object_id, &Permissions::for_disks())?;
            vault.create_key(&operator, PLATFORM_KEY, KeySize::Rsa3072, &attributes)?;
            Ok(())
        })?;
        self.vault(PLATFORM_VAULT)
    }

    /// Makes and fills a vault; false when there is one of that name.
    ///
    /// It is made in a staging directory, synced, renamed and then registered, under a lock. A
    /// crash before the rename leaves a staging directory, which the next maker removes; one after
    /// it leaves a complete vault, which the next maker of that name registers.
    fn make_vault(
        &self,
        name: &str,
        fill: impl FnOnce(&EmbeddedVault) -> Result<(), VaultError>,
    ) -> Result<bool, ControlError> {
        let vaults = self.vaults_dir();
        let dir = vaults.join(name);
        let fail = |source| ControlError::Directory {
            path: dir.clone(),
            source,
        };
        let _lock = lock(&vaults).map_err(fail)?;
        match self.catalog().vault(name) {
            Ok(_) => return Ok(false),
            Err(CatalogError::NotFound { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        if !dir.exists() {
            let staging = vaults.join(STAGING);
            remove_if_there(&staging).map_err(fail)?;
            DirBuilder::new()
                .mode(0o700)
                .create(&staging)
                .map_err(fail)?;
            let made = EmbeddedVault::create(&staging, name, Arc::new(SystemClock))
                .and_then(|vault| fill(&vault));
            if let Err(e) = made {
                remove_if_there(&staging).map_err(fail)?;
                return Err(e.into());
            }
            sync_dir(&staging)
                .and_then(|()| fs::rename(&staging, &dir))
                .and_then(|()| sync_dir(&vaults))
                .map_err(fail)?;
        }
        let vault = EmbeddedVault::open(&dir, name, Arc::new(SystemClock))?;
        self.catalog().insert_vault(&VaultRecord {
            name: name.into(),
            url: vault_url(name),
            kind: VaultKind::Embedded,
            created: vault.created(),
        })?;
        Ok(true)
    }
}

/// Makers of vaults take turns; the kernel releases the lock of one that dies.
fn lock(vaults: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(vaults.join(".lock"))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

fn remove_if_there(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installation() -> (tempfile::TempDir, Installation) {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(dir.path()).unwrap();
        (dir, installation)
    }

    #[test]
    fn what_a_crash_leaves_is_taken_up_or_cleared_away() {
        let (_dir, installation) = installation();
        let vaults = installation.vaults_dir();
        // Died in the middle of making it.
        fs::create_dir(vaults.join(STAGING)).unwrap();
        fs::write(vaults.join(STAGING).join("vault.db"), "half").unwrap();
        let vault = installation.create_vault("first").unwrap();
        assert!(!vaults.join(STAGING).exists());
        // Died between the rename and the registration.
        let source = tempfile::tempdir().unwrap();
        let other = Installation::open(source.path()).unwrap();
        other.create_vault("second").unwrap();
        fs::rename(other.vaults_dir().join("second"), vaults.join("second")).unwrap();
        assert!(installation.vault("second").is_err());
        installation.create_vault("second").unwrap();
        installation.vault("second").unwrap();
        drop(vault);
        let error = installation.create_vault("First").err().unwrap();
        assert!(error.to_string().contains("exists already"), "{error}");
    }

    #[test]
    fn a_failed_making_leaves_nothing() {
        let (_dir, installation) = installation();
        let refuse = |_: &EmbeddedVault| Err(VaultError::new(VaultErrorCode::Internal, "no"));
        installation.make_vault("vault", refuse).err().unwrap();
        let left: Vec<_> = fs::read_dir(installation.vaults_dir())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, [".lock"]);
        assert!(installation.catalog().vaults().unwrap().is_empty());
    }

    #[test]
    fn reserved_and_foreign_names_are_refused() {
        let (_dir, installation) = installation();
        for name in ["platform", "Platform", "..", "a/b"] {
            let error = installation.create_vault(name).err().unwrap();
            let ControlError::Vault(error) = error else {
                panic!("{name}: {error}");
            };
            assert_eq!(error.code, VaultErrorCode::BadParameter, "{name}");
        }
        let error = installation
            .vault_at("https://v.vault.azure.net")
            .err()
            .unwrap();
        assert!(matches!(error, ControlError::ForeignVault { .. }));
    }
}
