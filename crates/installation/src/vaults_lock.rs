//! Makers of vaults take turns.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::server_name::{self, ServerName};
use super::{Installation, InstallationError, Place};

/// The name on a server.
const NAME: &str = "vaults";

/// Held while vaults are made, deleted or registered, by one process of this host, and of all hosts where the catalog is on
/// a server. It goes with its holder.
pub struct VaultsLock {
    _file: File,
    _name: Option<ServerName>,
}

impl VaultsLock {
    /// Waits for it.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub fn take(place: &Place) -> Result<Self, InstallationError> {
        let path = place.state_dir.join("vaults");
        let file = lock(&path).map_err(|source| InstallationError::Directory { path, source })?;
        // So that of each host one waits at most.
        let name = server_name::take(&place.catalog, NAME)?;
        Ok(Self {
            _file: file,
            _name: name,
        })
    }
}

impl Installation {
    /// Waits for the lock of the vaults.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub(crate) fn lock_vaults(&self) -> Result<VaultsLock, InstallationError> {
        VaultsLock::take(self.place())
    }
}

/// The kernel releases it when its holder dies.
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
