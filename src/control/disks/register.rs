//! Registering the directory of a disk that was made elsewhere, or copied.
//!
//! # Order of steps
//!
//! The data is claimed and the header locked; the header is unlocked with the key that it names, by the
//! identity of a set of this installation; the header gets the disk's name and set here, and a new
//! attach id, so that no pending map of another copy counts; then the catalog gets its row. A crash
//! before the last step leaves a directory that can be registered as before.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::dataplane::{geometry, layer_map, lower_layers, open_files};
use super::unlock::Unwrapper;
use super::{Disk, DiskError, HEADER, layer_uses, refuse_taken_name};
use crate::catalog::{DiskRecord, DiskState};
use crate::control::Installation;
use crate::control::files::private_dir;
use crate::envelope::{HeaderFile, HeaderPayload, LayerRecord, check_disk_name};
use crate::volume::{Volume, check_data_file};

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

/// Makes a disk known; its name. Its directory and its key stay what they are.
///
/// # Errors
/// [`DiskError`]; the disk is not known then, and the catalog as it was.
pub fn register(
    installation: &Installation,
    request: &RegisterRequest,
) -> Result<String, DiskError> {
    let directory = existing(&request.directory)?;
    let file = HeaderFile::open(&directory.join(HEADER))?;
    let found = file.read()?.claims().clone();
    let name = request.name.clone().unwrap_or_else(|| found.name.clone());
    check_disk_name(&name).map_err(DiskError::Argument)?;
    refuse_known(installation, &found, &directory)?;
    refuse_taken_name(installation, found.kind, &name)?;
    let set = request
        .disk_encryption_set
        .clone()
        .or_else(|| found.disk_encryption_set.clone());
    if let Some(set) = &set {
        installation.catalog().des(set)?;
    }
    let disk = Disk {
        record: row(&found, &name, set.as_deref(), &directory),
    };
    let claim = disk.claim(&found)?;
    let mut lock = file.lock()?;
    let (mut header, dek) = disk.unlock_as(
        &mut Unwrapper::new(installation),
        set.as_deref(),
        lock.read()?,
    )?;
    let top = header.top().ok_or_else(|| disk.no_layer())?;
    let geometry = geometry(&header, top)?;
    check_data_file(claim.file(), &geometry)?;
    // Kept, and the claim with it, until the disk is known.
    let paths = |layer: &LayerRecord| disk.layer_paths(layer);
    let files = open_files(claim, &header, paths)?;
    let map = layer_map(&header, top, &paths(top))?;
    Volume::open_private(map, lower_layers(&header, paths)?)?;
    header.name.clone_from(&name);
    let before = std::mem::replace(&mut header.disk_encryption_set, set.clone());
    for layer in &mut header.layers {
        if layer.disk_encryption_set == before {
            layer.disk_encryption_set.clone_from(&set);
        }
    }
    header.attach = Uuid::new_v4();
    lock.write_both(&header, &dek)?;
    installation.catalog().insert_disk(&disk.record)?;
    drop(files);
    Ok(name)
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
    for known in installation.catalog().resources()? {
        if known.record.id == found.disk {
            return Err(DiskError::Registered {
                path: directory.into(),
                name: known.record.name,
            });
        }
    }
    Ok(())
}

fn row(header: &HeaderPayload, name: &str, set: Option<&str>, directory: &Path) -> DiskRecord {
    DiskRecord {
        id: header.disk,
        kind: header.kind,
        name: name.into(),
        directory: directory.into(),
        size: header.size,
        disk_encryption_set: set.map(Into::into),
        key_url: header
            .top()
            .map(|layer| layer.envelope.key_url())
            .unwrap_or_default(),
        layers: layer_uses(header),
        created: header.created,
        state: DiskState::Ready,
    }
}
