//! Deleting a disk, a snapshot or an image: its wrapped DEKs first.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::resource::directory::header_claims;
use crate::resource::disk::{Disk, claim_data};
use crate::resource::erase::{
    disk_files, erase, forget, has_another_header, remove_files, set_state,
};
use crate::resource::error::DiskError;
use crate::resource::lookup::lookup;
use crate::resource::staging::lock_directory;
use installation::Installation;
use installation::catalog::{Change, DiskRecord, DiskState};
use installation::envelope::ResourceKind;
use volume::store::LayerFile;

/// Deletes what is not in use. Its header is overwritten before any file is unlinked, so
/// that the ciphertext is worthless at once, whatever becomes of its blocks; layers that others have
/// too stay theirs.
///
/// It works without any key, and for a disk whose header is damaged or missing; of one whose header was not
/// seen the catalog keeps in mind that it may still exist. Where its directory has the header of another disk
/// now, nothing in it is touched. `runtime_dir` is where a killed daemon may have left the disk's map.
///
/// # Errors
/// [`DiskError::InUse`], [`DiskError::Granted`]; others, after which the deletion can be repeated.
pub fn delete(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
    runtime_dir: &Path,
) -> Result<(), DiskError> {
    let row = lookup(installation, kind, name)?;
    installation
        .catalog()
        .refuse_locked(kind.into(), name, Change::Delete)?;
    let directory = &row.record.directory;
    let busy = || DiskError::InUse {
        name: name.into(),
        path: directory.clone(),
    };
    let lock = match lock_directory(directory) {
        Ok(lock) => lock.ok_or_else(busy)?,
        // What is left is the catalog's row.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(forget(installation, &row)?),
        Err(e) => return Err(DiskError::file("lock", directory)(e)),
    };
    if has_another_header(&row.record) {
        return Ok(forget(installation, &row)?);
    }
    let disk = Disk {
        record: row.record.clone(),
    };
    disk.refuse_granted(installation)?;
    let claims = claim_own_data(&row.record)?;
    if disk.awaited_by().is_some() {
        return Err(disk.is_awaited());
    }
    let session = header_claims(directory).ok().and_then(|h| h.session);
    let row = match row.record.state {
        DiskState::Erased => row.clone(),
        _ => set_state(installation, &row, DiskState::Deleting)?,
    };
    let row = erase(installation, row)?;
    // Nobody can use it any more. NFS and FUSE keep a file that is open under another name in its directory,
    // which then is not empty.
    drop(claims);
    remove_files(directory)?;
    disk.remove_maps(session.as_ref(), runtime_dir);
    drop(lock);
    Ok(forget(installation, &row)?)
}

/// Claims the data of the layers that nobody else has, and the top layer in any case, which whoever
/// uses or reads it has. What others have loses nothing but a name here.
fn claim_own_data(record: &DiskRecord) -> Result<Vec<LayerFile>, DiskError> {
    let directory = &record.directory;
    let top = match header_claims(directory) {
        Ok(header) => header.top().map(|top| top.id),
        Err(_) => None,
    };
    let top = top.map(|id| format!("{id}.data"));
    let mut claims = Vec::new();
    for file in disk_files(directory)? {
        let path = directory.join(&file);
        let is_own = || path.symlink_metadata().is_ok_and(|data| data.nlink() < 2);
        if file.ends_with(".data") && (top.as_ref() == Some(&file) || is_own()) {
            claims.push(claim_data(&record.name, &path)?);
        }
    }
    Ok(claims)
}
