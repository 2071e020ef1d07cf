//! What is left in the directory of the vaults, and on the server, of vaults that were being made or purged.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::files::sync_dir;
use super::vault_places::made_dirs;
use super::{Installation, InstallationError};
use crate::catalog::CatalogError;
use vault::{normal_vault_name, vault_url};

/// How the directory of a purged vault begins that is not removed yet; no vault can be called so.
pub(super) const PURGED: &str = ".purged-";

impl Installation {
    /// Removes what is left of makers and purges that were cut off, and ends what is left to do here of a vault that is
    /// complete. The caller has the lock of the vaults.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub(super) fn sweep_vaults(&self) -> Result<(), InstallationError> {
        if let Some(server) = self.catalog().server_vaults() {
            server.sweep_vault_schemas()?;
            for (id, made) in self.listed(made_dirs)? {
                self.end_making(id, &made)?;
            }
            self.retire_purged_elsewhere()?;
        }
        for dir in self.listed(dirs)? {
            if name_of(&dir).starts_with(PURGED) {
                remove_if_there(&dir).map_err(|e| self.directory_error(e))?;
            }
        }
        Ok(())
    }

    /// What is in the directory of the vaults.
    fn listed<T>(
        &self,
        list: impl FnOnce(&Path) -> io::Result<Vec<T>>,
    ) -> Result<Vec<T>, InstallationError> {
        list(&self.vaults_dir()).map_err(|e| self.directory_error(e))
    }

    /// Gives the directory in which a vault was made its name, if the catalog has the vault. Nobody has used it else.
    fn end_making(&self, id: Uuid, made: &Path) -> Result<(), InstallationError> {
        for record in self.vaults_here()? {
            // While one cannot be looked at it may be the one.
            if self.look_at_vault(&record.name)?.id() == id {
                return self.name_vault_dir(made, &record.name);
            }
        }
        remove_if_there(made).map_err(|e| self.directory_error(e))
    }

    /// Has the directories go that this host has of vaults which another one has purged: a master key of a vault whose keys
    /// are destroyed would only be in the way of another vault of that name.
    fn retire_purged_elsewhere(&self) -> Result<(), InstallationError> {
        for dir in self.listed(dirs)? {
            let name = name_of(&dir);
            if !normal_vault_name(&name).is_ok_and(|normal| normal == name) {
                continue;
            }
            match self.catalog().vault(&name) {
                Ok(_) => continue,
                Err(CatalogError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            // Of what else is not known nobody knows whether it may go.
            if self.catalog().vault_purged_at(&vault_url(&name))?.is_some() {
                self.put_aside(&dir, PURGED)?;
            }
        }
        Ok(())
    }

    /// Gives a directory in that of the vaults a name that begins so, and that no other has; the directory then.
    pub(super) fn put_aside(
        &self,
        dir: &Path,
        beginning: &str,
    ) -> Result<PathBuf, InstallationError> {
        let vaults = self.vaults_dir();
        let aside = vaults.join(format!("{beginning}{}", Uuid::new_v4()));
        fs::rename(dir, &aside)
            .and_then(|()| sync_dir(&vaults))
            .map_err(|e| self.directory_error(e))?;
        Ok(aside)
    }
}

fn dirs(vaults: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(vaults)?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut dirs: Vec<_> = paths.collect::<io::Result<_>>()?;
    dirs.retain(|path| path.is_dir());
    Ok(dirs)
}

fn name_of(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Removes a directory with all that is in it, if it is there.
pub(super) fn remove_if_there(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
