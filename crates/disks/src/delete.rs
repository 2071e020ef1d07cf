//! Deleting a disk, a snapshot or an image: its wrapped DEKs first.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use uuid::Uuid;

use super::{Disk, DiskError, HEADER, claim_data, header_claims, lookup, staging::lock_directory};
use installation::Installation;
use installation::catalog::{
    CatalogError, DepartedRecord, Departure, DiskRecord, DiskState, Stored,
};
use installation::envelope::{HeaderFile, ResourceKind};
use installation::files::sync_dir;
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
/// [`DiskError::InUse`]; others, after which the deletion can be repeated.
pub fn delete(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
    runtime_dir: &Path,
) -> Result<(), DiskError> {
    let row = lookup(installation, kind, name)?;
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
    let claims = claim_own_data(&row.record)?;
    let session = header_claims(directory).ok().and_then(|h| h.session);
    let row = match row.record.state {
        DiskState::Erased => row.clone(),
        _ => set_state(installation, &row, DiskState::Deleting)?,
    };
    let row = erase(installation, row)?;
    let directory = &row.record.directory;
    // Nobody can use it any more. NFS and FUSE keep a file that is open under another name in its directory,
    // which then is not empty.
    drop(claims);
    remove_files(directory)?;
    let disk = Disk {
        record: row.record.clone(),
    };
    disk.remove_maps(session.as_ref(), runtime_dir);
    drop(lock);
    Ok(forget(installation, &row)?)
}

fn set_state(
    installation: &Installation,
    row: &Stored<DiskRecord>,
    state: DiskState,
) -> Result<Stored<DiskRecord>, CatalogError> {
    let record = DiskRecord {
        state,
        ..row.record.clone()
    };
    let rev = installation.catalog().update_disk(row.rev, &record)?;
    Ok(Stored { rev, record })
}

/// Deletes the row of what has no files any more. Where its header was not seen to be erased, the catalog
/// keeps in mind that it may still exist.
pub(super) fn forget(
    installation: &Installation,
    row: &Stored<DiskRecord>,
) -> Result<(), CatalogError> {
    let (catalog, record) = (installation.catalog(), &row.record);
    if record.state == DiskState::Erased {
        return catalog.delete_disk(record, row.rev);
    }
    log::warn!(
        "the header of the {kind} '{name}' was not in {directory}, so no key was erased; if it is on a file \
         system that is not mounted, remove it from there. Its key versions are not called safe to disable \
         until `sealdisk catalog forget {name}` says that it is gone",
        kind = record.kind,
        name = record.name,
        directory = record.directory.display()
    );
    let departed = DepartedRecord::new(record, None, Departure::DeletedUnseen);
    catalog.depart_disk(record, row.rev, &departed)
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

/// Whether the directory of a row has the header of another disk: that was moved or mounted there, and
/// with its header are its data. One that is damaged claims nothing, and is the row's: it is in its
/// directory.
pub(super) fn has_another_header(record: &DiskRecord) -> bool {
    header_claims(&record.directory).is_ok_and(|header| header.disk != record.id)
}

/// Erases the header, which is not [another's](has_another_header), and has the row say so; the row stays as it is
/// when there is no header.
pub(super) fn erase(
    installation: &Installation,
    row: Stored<DiskRecord>,
) -> Result<Stored<DiskRecord>, DiskError> {
    let header = row.record.directory.join(HEADER);
    if row.record.state == DiskState::Erased || !header.exists() {
        return Ok(row);
    }
    HeaderFile::open(&header)?.lock()?.erase()?;
    Ok(set_state(installation, &row, DiskState::Erased)?)
}

/// Removes a disk's files and its directory, which may be half made; nothing else that is in it.
pub(super) fn remove_files(directory: &Path) -> Result<(), DiskError> {
    for file in disk_files(directory)? {
        let path = directory.join(file);
        fs::remove_file(&path).map_err(DiskError::file("remove", &path))?;
    }
    match fs::remove_dir(directory) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
            return Err(DiskError::LeftBehind {
                path: directory.into(),
            });
        }
        Err(e) => return Err(DiskError::file("remove", directory)(e)),
    }
    match directory.parent() {
        Some(parent) => sync_dir(parent).map_err(DiskError::file("sync", parent)),
        None => Ok(()),
    }
}

/// The names in `directory` that a disk's files have.
fn disk_files(directory: &Path) -> Result<Vec<String>, DiskError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(DiskError::file("list", directory))? {
        let entry = entry.map_err(DiskError::file("list", directory))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let of_layer = name
            .strip_suffix(".data")
            .or_else(|| name.strip_suffix(".map"))
            .is_some_and(|id| Uuid::parse_str(id).is_ok());
        if of_layer || name == HEADER || name == "nbd.sock" {
            files.push(name);
        }
    }
    // The header first: an interrupted removal leaves ciphertext, not keys.
    files.sort_by_key(|name| name != HEADER);
    Ok(files)
}
