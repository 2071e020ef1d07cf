//! Forgetting a disk without touching its files: the opposite of [`register`](super::register).
//!
//! # Order of steps
//!
//! The data is claimed, so nobody uses the disk; what a killed daemon had completed is made durable, and
//! the header says that there is nothing else; then the catalog's row goes. A crash before that last
//! step leaves the disk known as before. The same transaction notes which keys it needs: it is not known
//! elsewhere, and they must not be called safe to disable because of that.

use std::io;
use std::path::{Path, PathBuf};

use super::register::ready_row;
use super::{Disk, DiskError, lookup};
use crate::catalog::{DepartedKey, DepartedRecord, Departure};
use crate::control::Installation;
use crate::envelope::ResourceKind;
use crate::store::LayerFile;
use crate::vault::same_key_url;

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
    let header = super::header_claims(&directory).ok();
    let header = header.map(|header| ready_row(&header, &directory));
    let departed = DepartedRecord::new(&row.record, header.as_ref(), Departure::Unregistered);
    installation
        .catalog()
        .depart_disk(&row.record, row.rev, &departed)?;
    if claim.is_some() {
        disk.remove_maps(None, runtime_dir);
    }
    Ok(directory)
}

/// Takes the operator's word that what has left the catalog is gone for good.
///
/// # Errors
/// [`DiskError::Argument`] where its header is still to be seen.
pub fn forget_departed(
    installation: &Installation,
    departed: &DepartedRecord,
) -> Result<(), DiskError> {
    let directory = Path::new(&departed.directory);
    let header = super::header_claims(directory).ok();
    let header = header.filter(|header| header.disk == departed.id);
    let needs = |key: &DepartedKey| {
        let mut layers = header.iter().flat_map(|header| &header.layers);
        layers.any(|layer| same_key_url(&layer.envelope.key_url(), &key.key_url))
    };
    if departed.keys.iter().any(needs) {
        return Err(DiskError::Argument(format!(
            "the {} '{}' is not gone: its header is in {}; make it known with `sealdisk disk register --dir`, \
             and delete it",
            departed.kind,
            departed.name,
            directory.display()
        )));
    }
    installation.record_forgotten(departed)?;
    installation.catalog().forget_departed(departed.id)?;
    Ok(())
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
