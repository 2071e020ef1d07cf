//! Who may do what with the keys of vaults is changed by one at a time.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::server_name::{self, ServerName};
use super::{Installation, InstallationError};

/// The name on a server.
const NAME: &str = "policies";

/// Held while access policies are read and changed, and the roles that they follow from: of two who change them at once,
/// in whichever process, and on whichever host where the catalog is on a server, the second finds what the first has left.
/// It goes with its holder.
///
/// # Order
///
/// 1. the names that the management API locks (`crates/arm/src/changing.rs`), a group before a resource;
/// 2. this lock;
/// 3. that of the vaults (`vaults_lock.rs`);
/// 4. transactions of databases.
///
/// Nobody who has one of these waits for one before it, or takes the same one again. What is long is not done with this
/// lock: no key is made or used, and nobody is asked over a network.
pub struct PolicyLock {
    _file: File,
    _name: Option<ServerName>,
}

impl Installation {
    /// Waits for the lock of access policies and roles.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub fn lock_policies(&self) -> Result<PolicyLock, InstallationError> {
        let file = lock(&self.vaults_dir()).map_err(|source| self.directory_error(source))?;
        let name = server_name::take(&self.place().catalog, NAME)?;
        Ok(PolicyLock {
            _file: file,
            _name: name,
        })
    }
}

/// Of the directory itself: access is also taken away where there is no room for another file.
fn lock(vaults: &Path) -> io::Result<File> {
    let directory = File::open(vaults)?;
    flock(&directory, FlockOperation::LockExclusive)?;
    Ok(directory)
}
