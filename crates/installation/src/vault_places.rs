//! Where the vaults of an installation are, and opening them there.
//!
//! A vault is a directory, `STATE_DIR/vaults/NAME`. Where the catalog is on a server, the vault's database is there too, in
//! a schema of its own, and the directory has what one host has of it: the master key, unless that is elsewhere, and how
//! far the host has seen the vault's log.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::files::{private_dir, sync_dir};
use super::server_databases::{look_at_vault, open_vault};
use super::vault_backends::private_keys;
use super::{Installation, InstallationError};
use crate::catalog::VaultRecord;
use database::postgres::ServerUrl;
use vault::{EmbeddedVault, PrivateKeys, SystemClock, VaultDatabase, VaultError, VaultPlace};

/// How the directory of a vault begins from when its database is whole until it is known that the catalog has it, with the
/// vault's id behind; no vault can be called so.
pub(super) const MADE: &str = ".made-";

impl Installation {
    /// The directory of a vault that is kept in this installation.
    pub fn vault_dir(&self, name: &str) -> PathBuf {
        self.vaults_dir().join(name)
    }

    /// Where the database of a vault is, if that is on the server of the catalog.
    pub(super) fn vault_on_server(&self, name: &str) -> Option<ServerUrl> {
        let schema = self.catalog().server_vaults()?.vault_schema(name);
        Some(self.place().catalog.server()?.in_schema(&schema))
    }

    /// Opens a vault that is kept in this installation.
    ///
    /// # Errors
    /// [`InstallationError::RemoteVault`], or why it cannot be opened.
    pub(super) fn open_vault(
        &self,
        record: &VaultRecord,
    ) -> Result<EmbeddedVault, InstallationError> {
        self.open_vault_with(&record.name, private_keys(record)?)
    }

    /// The same of one that the catalog may not know.
    ///
    /// # Errors
    /// Why it cannot be opened.
    pub(super) fn open_vault_with(
        &self,
        name: &str,
        keys: Arc<dyn PrivateKeys>,
    ) -> Result<EmbeddedVault, InstallationError> {
        let dir = self.vault_dir(name);
        let place = match self.vault_on_server(name) {
            None => VaultPlace::in_directory(&dir),
            Some(url) => {
                self.have_vault_dir(name)?;
                VaultPlace::on_server(&dir, move || open_vault(&url))
            }
        };
        let clock = Arc::new(SystemClock);
        Ok(EmbeddedVault::open_in(place, name, clock, keys)?)
    }

    /// The database of a vault that is kept in this installation, without its master key.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn vault_database(&self, name: &str) -> Result<VaultDatabase, VaultError> {
        match self.vault_on_server(name) {
            None => VaultDatabase::open(&self.vault_file(name)),
            Some(url) => VaultDatabase::on_server(open_vault(&url)?, &url.to_string()),
        }
    }

    /// The same for who only looks: the database stays as it is, of an older version too.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn look_at_vault(&self, name: &str) -> Result<VaultDatabase, VaultError> {
        match self.vault_on_server(name) {
            None => VaultDatabase::look(&self.vault_file(name)),
            Some(url) => VaultDatabase::on_server(look_at_vault(&url)?, &url.to_string()),
        }
    }

    /// The file of a vault's database, where it is one.
    pub(super) fn vault_file(&self, name: &str) -> PathBuf {
        self.vault_dir(name).join("vault.db")
    }

    /// Whether the catalog knows a vault whose database is not there any more. One that cannot be looked at may be there.
    pub fn is_lost(&self, record: &VaultRecord) -> bool {
        if record.kind.is_remote() {
            return false;
        }
        match self.catalog().server_vaults() {
            Some(server) => matches!(server.has_vault_schema(&record.name), Ok(false)),
            None => matches!(self.vault_file(&record.name).try_exists(), Ok(false)),
        }
    }

    /// Has this host have the directory of a vault that is on a server: the one in which it was made, if that was here and
    /// its maker did not end, and else an empty one.
    pub(super) fn have_vault_dir(&self, name: &str) -> Result<(), InstallationError> {
        let dir = self.vault_dir(name);
        if dir.exists() {
            return Ok(());
        }
        let made = made_dirs(&self.vaults_dir()).map_err(|e| self.directory_error(e))?;
        if !made.is_empty() {
            let id = self.look_at_vault(name)?.id();
            if let Some((_, made)) = made.iter().find(|(of, _)| *of == id) {
                return self.name_vault_dir(made, name);
            }
        }
        private_dir(&dir)
    }

    /// Gives the directory in which a vault was made its name. Another process may be faster.
    pub(super) fn name_vault_dir(&self, made: &Path, name: &str) -> Result<(), InstallationError> {
        let (vaults, dir) = (self.vaults_dir(), self.vault_dir(name));
        let named = match fs::rename(made, &dir) {
            Err(e) if e.kind() == ErrorKind::NotFound && dir.exists() => Ok(()),
            named => named.and_then(|()| sync_dir(&vaults)),
        };
        named.map_err(|e| self.directory_error(e))
    }

    pub(super) fn directory_error(&self, source: io::Error) -> InstallationError {
        InstallationError::Directory {
            path: self.vaults_dir(),
            source,
        }
    }
}

/// The directories of vaults that were made, with the ids of these, whose makers have not given them their names yet.
pub(super) fn made_dirs(vaults: &Path) -> io::Result<Vec<(Uuid, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(vaults)? {
        let entry = entry?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix(MADE));
        let id = id.and_then(|id| Uuid::parse_str(id).ok());
        found.extend(id.map(|id| (id, entry.path())));
    }
    Ok(found)
}
