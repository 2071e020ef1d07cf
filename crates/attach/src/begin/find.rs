//! From a word of the command line to a disk.

use disks::{Disk, DiskError};
use installation::Installation;

/// The disk of that name, or whose directory that is.
///
/// # Errors
/// [`DiskError`].
pub(crate) fn find(installation: &Installation, disk: &str) -> Result<Disk, DiskError> {
    if !disk.contains('/') {
        return Disk::find(installation, disk);
    }
    let directory = std::fs::canonicalize(disk)
        .map_err(|e| DiskError::Argument(format!("no disk is in {disk}: {e}")))?;
    Disk::in_directory(installation, &directory)?
        .ok_or_else(|| DiskError::Argument(format!("no disk is in {disk}; `disk list` names them")))
}
