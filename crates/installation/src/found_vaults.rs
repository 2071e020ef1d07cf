//! Registering vaults again by their directories, for a catalog that was lost.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use super::vaults::{PLATFORM_VAULT, lock, open};
use super::{Installation, InstallationError};
use crate::catalog::{CatalogError, VaultKind, VaultRecord};
use vault::{Permissions, SoftwareKeys, vault_url};

/// Held while vaults are made, deleted or registered; the kernel releases it when its holder dies.
pub struct VaultsLock {
    _file: File,
}

impl VaultsLock {
    /// Waits for it.
    ///
    /// # Errors
    /// [`InstallationError::Directory`].
    pub fn take(state_dir: &Path) -> Result<Self, InstallationError> {
        let path = state_dir.join("vaults");
        match lock(&path) {
            Ok(file) => Ok(Self { _file: file }),
            Err(source) => Err(InstallationError::Directory { path, source }),
        }
    }
}

/// What the directories of vaults have brought back.
#[derive(Default)]
pub struct FoundVaults {
    /// Vaults that the catalog did not know, and does now.
    pub registered: Vec<String>,
    /// Those that could not be registered, and why.
    pub problems: Vec<String>,
}

impl Installation {
    /// Registers the vaults whose directories are there. The caller holds a [`VaultsLock`].
    ///
    /// # Errors
    /// [`InstallationError`]; what concerns a single vault is in [`FoundVaults::problems`].
    pub fn register_found_vaults(&self) -> Result<FoundVaults, InstallationError> {
        let mut found = FoundVaults::default();
        let entries = fs::read_dir(self.vaults_dir()).map_err(|e| self.directory_error(e))?;
        for entry in entries {
            let dir = entry.map_err(|e| self.directory_error(e))?.path();
            let Some(name) = dir.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            if name.starts_with('.') || !dir.join("vault.db").exists() {
                continue;
            }
            match self.catalog().vault(name) {
                Ok(_) => continue,
                Err(CatalogError::NotFound { .. }) => {}
                Err(e) => return Err(e.into()),
            }
            match self.register_vault(&dir, name) {
                Ok(()) => found.registered.push(name.into()),
                Err(why) => found.problems.push(format!("key vault '{name}': {why}")),
            }
        }
        Ok(found)
    }

    fn register_vault(&self, dir: &Path, name: &str) -> Result<(), String> {
        let vault = open(dir, name, Arc::new(SoftwareKeys)).map_err(|e| e.to_string())?;
        if vault.has_token_keys().map_err(|e| e.to_string())? {
            return Err(format!(
                "its private keys are in a token: register it with `sealdisk keyvault create {name} \
                 --hsm-module … --hsm-token …`"
            ));
        }
        let grant = || -> Result<(), InstallationError> {
            // A deleted vault takes no policy; it has its own until it is recovered.
            if vault.deletion()?.is_none() {
                self.grant_operator(&vault)?;
                let platform = self.platform().object_id;
                let granted = vault.policies()?.iter().any(|(id, _)| *id == platform);
                if name == PLATFORM_VAULT && !granted {
                    vault.set_policy(&self.operator(), platform, &Permissions::for_disks())?;
                }
            }
            Ok(self.catalog().insert_vault(&VaultRecord {
                name: name.into(),
                url: vault_url(name),
                kind: VaultKind::Embedded,
                created: vault.created(),
            })?)
        };
        grant().map_err(|e| e.to_string())
    }
}
