//! Registering vaults again by their directories, for a catalog that was lost, or by their schemas, for one on a server that
//! is older than they are.

use std::fs;
use std::sync::Arc;

use super::server_databases::look_at_vault;
use super::vaults::PLATFORM_VAULT;
use super::{Installation, InstallationError};
use crate::catalog::{CatalogError, VaultKind, VaultRecord};
use vault::{Permissions, SoftwareKeys, VaultDatabase, VaultError, vault_url};

/// What the directories of vaults have brought back.
#[derive(Default)]
pub struct FoundVaults {
    /// Vaults that the catalog did not know, and does now.
    pub registered: Vec<String>,
    /// Those that could not be registered, and why.
    pub problems: Vec<String>,
}

impl Installation {
    /// Registers the vaults whose directories, or schemas, are there. The caller holds a
    /// [`VaultsLock`](crate::VaultsLock).
    ///
    /// # Errors
    /// [`InstallationError`]; what concerns a single vault is in [`FoundVaults::problems`].
    pub fn register_found_vaults(&self) -> Result<FoundVaults, InstallationError> {
        let mut found = FoundVaults::default();
        for name in self.names_found(&mut found)? {
            match self.catalog().vault(&name) {
                Ok(_) => continue,
                Err(CatalogError::NotFound { .. }) => {}
                Err(e) => return Err(e.into()),
            }
            match self.register_vault(&name) {
                Ok(()) => found.registered.push(name),
                Err(why) => found.problems.push(format!("key vault '{name}': {why}")),
            }
        }
        Ok(found)
    }

    /// The names of the vaults that are there.
    fn names_found(&self, found: &mut FoundVaults) -> Result<Vec<String>, InstallationError> {
        let mut names = Vec::new();
        let server = self.catalog().server_vaults();
        if let Some((server, url)) = server.zip(self.place().catalog.server()) {
            for schema in server.vault_schemas()? {
                let url = url.in_schema(&schema);
                let look = || -> Result<String, VaultError> {
                    let database = look_at_vault(&url)?;
                    let database = VaultDatabase::on_server(database, &url.to_string())?;
                    Ok(database.name().to_owned())
                };
                match look() {
                    Ok(name) => names.push(name),
                    Err(why) => found.problems.push(format!("the schema {schema}: {why}")),
                }
            }
            return Ok(names);
        }
        let entries = fs::read_dir(self.vaults_dir()).map_err(|e| self.directory_error(e))?;
        for entry in entries {
            let dir = entry.map_err(|e| self.directory_error(e))?.path();
            let name = dir.file_name().and_then(|name| name.to_str());
            names.extend(name.map(str::to_owned).filter(|name| {
                let is_hidden = name.starts_with('.');
                !is_hidden && self.vault_file(name).exists()
            }));
        }
        Ok(names)
    }

    fn register_vault(&self, name: &str) -> Result<(), String> {
        let vault = self.open_vault_with(name, Arc::new(SoftwareKeys));
        let vault = vault.map_err(|e| e.to_string())?;
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
