//! Growing a disk, whether it is attached or not.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::control::Installation;
use crate::control::disks::{self, Disk, DiskError};
use volume::store::LayerFile;

use super::AttachError;
use super::control_socket::{follow_size, key_status};

/// How long an attach that has begun is waited for until it can be told things.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes a disk `size` bytes large. Of an attached disk the guest sees the new size at once, if its
/// virtual machine monitor can be told.
///
/// # Errors
/// [`AttachError::Disk`], after which the disk has its old size; [`AttachError::SizeNotServed`].
pub fn resize(
    installation: &Installation,
    name: &str,
    size: u64,
    runtime_dir: &Path,
) -> Result<(), AttachError> {
    let disk = Disk::find(installation, name)?;
    let claim = claim_or_reach(&disk, runtime_dir)?;
    if claim.is_some() {
        let header = disk.header_file()?.read().map_err(DiskError::from)?;
        disk.refuse_unsynced(header.claims(), runtime_dir)?;
    }
    disks::grow(installation, &disk, size)?;
    if claim.is_some() {
        return Ok(());
    }
    let Err(error) = follow_size(runtime_dir, disk.id()) else {
        return Ok(());
    };
    // Detached meanwhile: the next attach serves what the header says.
    if try_claim(&disk)?.is_some() {
        return Ok(());
    }
    Err(AttachError::SizeNotServed {
        name: name.into(),
        size,
        reason: error.to_string(),
    })
}

/// Claims a disk that nobody uses; `None` when it is attached and can be told things.
pub(super) fn claim_or_reach(
    disk: &Disk,
    runtime_dir: &Path,
) -> Result<Option<LayerFile>, DiskError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(claim) = try_claim(disk)? {
            return Ok(Some(claim));
        }
        if key_status(runtime_dir, disk.id()).is_ok() {
            return Ok(None);
        }
        if Instant::now() > deadline {
            // Whoever has it is no attach of this runtime directory.
            return disk.claim(disk.header_file()?.read()?.claims()).map(Some);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn try_claim(disk: &Disk) -> Result<Option<LayerFile>, DiskError> {
    match disk.claim(disk.header_file()?.read()?.claims()) {
        Ok(claim) => Ok(Some(claim)),
        Err(DiskError::InUse { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
