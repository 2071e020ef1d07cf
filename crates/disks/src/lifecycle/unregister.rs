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

use uuid::Uuid;

use crate::des::record_forgotten;
use crate::lifecycle::new_resource::ready_row;
use crate::resource::directory::{header_claims, unverified_header};
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::lookup::lookup;
use crate::resource::reconcile::described_as_found;
use installation::Installation;
use installation::catalog::{CatalogError, Change, DepartedKey, DepartedRecord, Departure, Kind};
use installation::envelope::{
    EnvelopeError, HeaderBuffer, HeaderPayload, LayerRecord, ResourceKind,
};
use vault::same_key_url;
use volume::store::LayerFile;

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
    let catalog = installation.catalog();
    catalog.refuse_locked(Kind::Disk, name, Change::Delete)?;
    let disk = Disk::find(installation, name)?;
    let directory = disk.directory().to_owned();
    let claim = match directory.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        _ => Some(claim_settled(installation, &disk, runtime_dir)?),
    };
    let header = unverified_header(&directory, &mut HeaderBuffer::default()).ok();
    let header = header.filter(|found| found.claims().disk == row.record.id);
    let header =
        header.map(|found| described_as_found(&ready_row(found.claims(), &directory), &found));
    let reason = match header {
        Some(_) => Departure::Unregistered,
        None => Departure::UnregisteredUnseen,
    };
    let departed = DepartedRecord::new(&row.record, header.as_ref(), reason);
    catalog.depart_disk(&row.record, row.rev, &departed)?;
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
    let not_gone = |why: &str| {
        DiskError::Argument(format!(
            "the {} '{}' is not gone: its header is in {}{why}; make it known with `sealdisk disk register \
             --dir`, and delete it",
            departed.kind, departed.name, departed.directory
        ))
    };
    match header_left(departed) {
        Ok(None) => {}
        // What was not read may have been under other key versions than the catalog knew.
        Ok(Some(_)) if departed.reason.is_unseen() => return Err(not_gone("")),
        Ok(Some(header)) => {
            let needs = |key: &DepartedKey| {
                let mut keys = header.layers.iter().flat_map(LayerRecord::envelopes);
                keys.any(|(_, envelope)| same_key_url(&envelope.key_url(), &key.key_url))
            };
            if departed.keys.iter().any(needs) {
                return Err(not_gone(""));
            }
        }
        Err(error) => return Err(not_gone(&format!(", and cannot be read: {error}"))),
    }
    record_forgotten(installation, departed)?;
    installation.catalog().forget_departed(departed.id)?;
    Ok(())
}

/// Forgets that a disk had left the catalog which is known again, in whichever directory: unless its header
/// is still where it was then, so that the known one is a copy.
pub(crate) fn forget_returned(installation: &Installation, disk: Uuid) -> Result<(), CatalogError> {
    let departed = installation.catalog().departed()?;
    for departed in departed.iter().filter(|departed| departed.id == disk) {
        if matches!(header_left(departed), Ok(None)) {
            installation.catalog().forget_departed(disk)?;
        }
    }
    Ok(())
}

/// The header that what has departed still has where it was; an error is one that cannot be read.
fn header_left(departed: &DepartedRecord) -> Result<Option<HeaderPayload>, EnvelopeError> {
    // Of what is known by a log only there is no directory.
    if departed.directory.is_empty() {
        return Ok(None);
    }
    match header_claims(Path::new(&departed.directory)) {
        Ok(header) => Ok(Some(header).filter(|header| header.disk == departed.id)),
        Err(EnvelopeError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Claims the disk with all that was completed made durable.
fn claim_settled(
    installation: &Installation,
    disk: &Disk,
    runtime_dir: &Path,
) -> Result<LayerFile, DiskError> {
    // Before readers who hold it are waited for, and after nobody can be granted anything any more.
    disk.refuse_granted(installation)?;
    let claim = disk
        .claim()
        .map_err(|error| disk.in_use_where(installation, error))?;
    disk.refuse_granted(installation)?;
    disk.settle(installation, &claim, runtime_dir)?;
    Ok(claim)
}
