//! Registering the directory of a disk that was made elsewhere, or copied.
//!
//! # Order of steps
//!
//! The data is claimed and the header locked; the header is unlocked with the key that it names, by the
//! identity of a set of this installation; the header gets the disk's name and set here, and a new
//! attach id, so that no runtime map of another copy counts; then the catalog gets its row. A crash
//! before the last step leaves a directory that can be registered as before. What a killed daemon had
//! completed on this boot is made durable before the header is written; its runtime map is left, since
//! it may be that of a disk of which this is a copy.

use std::path::{Path, PathBuf};

use crate::lifecycle::new_resource::ready_row;
use crate::lifecycle::unregister::forget_returned;
use crate::resource::directory::HEADER;
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::lookup::{refuse_locked, refuse_taken_name};
use crate::resource::open::{geometry, layer_map, lower_layers, open_files};
use crate::resource::session::{Unflushed, ended};
use crate::resource::unlock::Unwrapper;
use installation::Installation;
use installation::catalog::CatalogError;
use installation::envelope::{
    Header, HeaderFile, HeaderPayload, LayerRecord, ResourceKind, check_disk_name,
};
use installation::files::private_dir;
use volume::{Volume, check_data_file};

/// What is to be registered.
#[derive(Debug)]
pub struct RegisterRequest {
    /// The disk's directory, in which it stays.
    pub directory: PathBuf,
    /// Its name here; else the one that its header has.
    pub name: Option<String>,
    /// The disk encryption set whose identity may use its key; else the one that its header names.
    pub disk_encryption_set: Option<String>,
}

/// Makes a disk known; its name. Its directory and its key stay what they are. One that is in use, on another host say, or
/// was not let go of there in order, can be made known under its own name and set.
///
/// # Errors
/// [`DiskError`]; the disk is not known then, and the catalog as it was.
pub fn register(
    installation: &Installation,
    request: &RegisterRequest,
    runtime_dir: &Path,
) -> Result<String, DiskError> {
    let directory = existing(&request.directory)?;
    let file = HeaderFile::open(&directory.join(HEADER))?;
    let found = file.read()?.claims().clone();
    if found.kind != ResourceKind::Disk {
        return Err(DiskError::Argument(format!(
            "{} is the directory of {}; only disks are registered",
            directory.display(),
            found.kind.with_article()
        )));
    }
    let name = request.name.clone().unwrap_or_else(|| found.name.clone());
    check_disk_name(&name).map_err(DiskError::Argument)?;
    refuse_known(installation, &found, &directory)?;
    refuse_taken_name(installation, found.kind, &name)?;
    refuse_locked(installation, found.kind, &name)?;
    // A request that was cut off may have meant to put something else of that name somewhere.
    installation
        .catalog()
        .forget_left(found.kind.into(), &name)?;
    let set = request
        .disk_encryption_set
        .clone()
        .or_else(|| found.disk_encryption_set.clone());
    if let Some(set) = &set {
        installation.catalog().des(set)?;
    }
    let mut disk = Disk {
        record: ready_row(&found, &directory),
    };
    disk.record.name.clone_from(&name);
    let is_same = name == found.name && set == found.disk_encryption_set;
    let claim = match disk.claim() {
        Err(DiskError::InUse { .. } | DiskError::Awaited { .. }) if is_same => {
            register_as_it_is(installation, &disk, &file)?;
            return Ok(name);
        }
        claim => claim?,
    };
    let mut lock = file.lock()?;
    let mut keys = Unwrapper::new(installation);
    let (mut header, dek) = disk.unlock_as(&mut keys, set.as_deref(), lock.read()?)?;
    header.name.clone_from(&name);
    move_to_set(installation, &mut header, set, request)?;
    for layer in header.layers.iter().rev().skip(1) {
        disk.unlock_layer(&mut keys, &header, layer)?;
    }
    let top = header.top().ok_or_else(|| disk.no_layer())?;
    let geometry = geometry(&header, top)?;
    check_data_file(claim.file(), &geometry)?;
    let left = match disk.left(&header, runtime_dir, Unflushed::Needed) {
        // What its last user has left there only that host can make durable.
        Err(DiskError::NotLetGo { .. }) if is_same => {
            drop((lock, claim));
            register_as_it_is(installation, &disk, &file)?;
            return Ok(name);
        }
        left => left?,
    };
    let cache = left.cache()?;
    if let Some(runtime) = left.map() {
        disk.flush_left(&header, &claim, &runtime)?;
    }
    // Kept, and the claim with it, until the disk is known.
    let paths = |layer: &LayerRecord| disk.layer_paths(layer);
    let files = open_files(claim, &header, paths)?;
    let map = layer_map(&header, top, &paths(top))?;
    Volume::open_private(map, lower_layers(&header, paths)?)?.verify()?;
    ended(&mut header, cache);
    lock.write_both(&header, &dek)?;
    let row = ready_row(&header, &directory);
    installation.catalog().insert_disk(&row)?;
    forget_returned(installation, row.id)?;
    drop(files);
    Ok(name)
}

/// Makes a disk known that another host has attached, from which a guest is to move here, or has not let go of in order: as
/// it is, since nothing of it may be changed. Its keys are tried.
fn register_as_it_is(
    installation: &Installation,
    disk: &Disk,
    file: &HeaderFile,
) -> Result<(), DiskError> {
    let header = disk.check_keys(installation, file.read()?)?;
    let row = ready_row(&header, disk.directory());
    installation.catalog().insert_disk(&row)?;
    Ok(forget_returned(installation, row.id)?)
}

/// Has the layers that were under the disk's own set be under `set`, and, when that one was asked
/// for, those too whose set this installation does not have.
fn move_to_set(
    installation: &Installation,
    header: &mut Header,
    set: Option<String>,
    request: &RegisterRequest,
) -> Result<(), DiskError> {
    let before = std::mem::replace(&mut header.disk_encryption_set, set.clone());
    for layer in &mut header.layers {
        let known = match &layer.disk_encryption_set {
            Some(other) if *other != before.as_deref().unwrap_or_default() => {
                match installation.catalog().des(other) {
                    Ok(_) => true,
                    Err(CatalogError::NotFound { .. }) if request.disk_encryption_set.is_some() => {
                        false
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            _ => true,
        };
        if layer.disk_encryption_set == before || !known {
            layer.disk_encryption_set.clone_from(&set);
        }
    }
    Ok(())
}

/// The absolute path of a directory in which nobody else can write.
fn existing(directory: &Path) -> Result<PathBuf, DiskError> {
    let path = directory
        .canonicalize()
        .map_err(DiskError::file("find", directory))?;
    if !path.is_dir() {
        return Err(DiskError::Argument(format!(
            "{} is no directory; give the one in which the disk's header is",
            directory.display()
        )));
    }
    private_dir(&path)?;
    Ok(path)
}

/// Two copies of a disk are one disk: the same ids, the same key, the same runtime files. In one
/// installation only one of them can be used.
fn refuse_known(
    installation: &Installation,
    found: &HeaderPayload,
    directory: &Path,
) -> Result<(), DiskError> {
    let known = installation.catalog().resources_with_ids(&[found.disk])?;
    match known.into_iter().next() {
        Some(known) => Err(DiskError::Registered {
            path: directory.into(),
            name: known.record.name,
        }),
        None => Ok(()),
    }
}
