//! Forgetting a disk without touching its files: the opposite of [`register`](super::register).
//!
//! # Order of steps
//!
//! The data is claimed, so nobody uses the disk; what a killed daemon had completed is made durable, and
//! the header says that there is nothing else; the vaults of its keys note that they are still needed; then
//! the catalog's row goes. A crash before that last step leaves the disk known as before.

use std::io;
use std::path::{Path, PathBuf};

use super::{Disk, DiskError, lookup};
use crate::control::Installation;
use crate::envelope::ResourceKind;
use crate::store::LayerFile;

/// Has the catalog forget an unattached disk; the directory in which its files and its header stay.
/// No key is needed, unless a daemon was killed that had not flushed everything. A disk whose directory is not there is forgotten too.
///
/// # Errors
/// [`DiskError`]; the disk is known as before then.
pub fn unregister(
    installation: &Installation,
    name: &str,
    runtime_dir: &Path,
) -> Result<PathBuf, DiskError> {
    let row = lookup(installation, ResourceKind::Disk, name)?;
    let disk = Disk::find(installation, name)?;
    let directory = disk.directory().to_owned();
    let claim = match directory.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        _ => Some(claim_settled(installation, &disk, runtime_dir)?),
    };
    // Before: a key must not seem to be needed by nothing in between.
    installation.note_registration(&row.record, false);
    installation.catalog().delete_disk(&row.record, row.rev)?;
    if claim.is_some() {
        disk.remove_maps(None, runtime_dir);
    }
    Ok(directory)
}

/// Claims the disk with all that was completed made durable.
fn claim_settled(
    installation: &Installation,
    disk: &Disk,
    runtime_dir: &Path,
) -> Result<LayerFile, DiskError> {
    let header = disk.header_file()?.read()?;
    let claim = disk.claim(header.claims())?;
    disk.settle(installation, &claim, runtime_dir)?;
    Ok(claim)
}
