//! Who may do what with the keys of vaults is changed by one at a time.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::{Installation, InstallationError};

/// Held while access policies are read and changed, and the roles that they follow from: of two who change them at once,
/// in whichever process, the second finds what the first has left. The kernel releases it when its holder dies.
///
/// # Order
///
/// 1. the names that the management API locks (`crates/arm/src/changing.rs`), a group before a resource;
/// 2. this lock;
/// 3. that of the vaults (`vaults/.lock`);
/// 4. transactions of databases.
///
/// Nobody who has one of these waits for one before it, or takes the same one again. What is long is not done with this
/// lock: no key is made or used, and nobody is asked over a network.
pub struct PolicyLock {
    _file: File,
}

impl Installation {
    /// Waits for the lock of access policies and roles.
    ///
    /// # Errors
    /// [`InstallationError::Directory`].
    pub fn lock_policies(&self) -> Result<PolicyLock, InstallationError> {
        match lock(&self.vaults_dir()) {
            Ok(file) => Ok(PolicyLock { _file: file }),
            Err(source) => Err(self.directory_error(source)),
        }
    }
}

/// Of the directory itself: access is also taken away where there is no room for another file.
fn lock(vaults: &Path) -> io::Result<File> {
    let directory = File::open(vaults)?;
    flock(&directory, FlockOperation::LockExclusive)?;
    Ok(directory)
}
