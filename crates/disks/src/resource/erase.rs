//! Erasing a resource: its wrapped DEKs, its files, and its row.

use std::fs;
use std::io;
use std::path::Path;

use uuid::Uuid;

use crate::resource::directory::{AWAITED, HEADER, header_claims};
use crate::resource::directory_lock::DirectoryLock;
use crate::resource::error::DiskError;
use installation::Installation;
use installation::catalog::{
    CatalogError, DepartedRecord, Departure, DiskRecord, DiskState, Stored,
};
use installation::envelope::HeaderFile;
use installation::files::sync_dir;

/// Deletes the row of what has no files any more. Where its header was not seen to be erased, the catalog
/// keeps in mind that it may still exist.
pub(crate) fn forget(
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

/// Whether the directory of a row has the header of another disk: that was moved or mounted there, and
/// with its header are its data. One that is damaged claims nothing, and is the row's: it is in its
/// directory.
pub(crate) fn has_another_header(record: &DiskRecord) -> bool {
    header_claims(&record.directory).is_ok_and(|header| header.disk != record.id)
}

/// Erases the header, which is not [another's](has_another_header), and has the row say so; the row stays as it is
/// when there is no header.
pub(crate) fn erase(
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

/// Removes a disk's files and its directory, which may be half made and whose lock that is; nothing else that is in it.
pub(crate) fn remove_files(directory: &Path, lock: Option<DirectoryLock>) -> Result<(), DiskError> {
    for file in disk_files(directory)? {
        let path = directory.join(file);
        match fs::remove_file(&path) {
            // A server whose answer got lost is asked again.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(DiskError::file("remove", &path))?,
        }
    }
    let removed = match lock {
        Some(lock) => lock.remove_directory(directory),
        None => fs::remove_dir(directory),
    };
    match removed {
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
pub(crate) fn disk_files(directory: &Path) -> Result<Vec<String>, DiskError> {
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
        if of_layer || [HEADER, AWAITED, "nbd.sock"].contains(&name.as_str()) {
            files.push(name);
        }
    }
    // The header first: an interrupted removal leaves ciphertext, not keys.
    files.sort_by_key(|name| name != HEADER);
    Ok(files)
}

pub(crate) fn set_state(
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
