//! Making an image, of which disks are to be made.

use std::path::PathBuf;

use crate::import::{Cancel, SourceSpec};
use crate::layers::hold::hold;
use crate::layers::push::refuse_incomplete;
use crate::layers::snapshot;
use crate::lifecycle::create::{CreateRequest, Created, create_as};
use crate::lifecycle::new_resource::row;
use crate::resource::directory::HEADER;
use crate::resource::error::DiskError;
use crate::resource::layer_files;
use crate::resource::lookup::refuse_locked;
use crate::resource::staging::Staging;
use installation::Installation;
use installation::envelope::{Header, HeaderFile, ResourceKind};
use installation::files::sync_dir;

/// What an image that is read from a file is to be.
#[derive(Debug)]
pub struct ImageRequest {
    /// Its name.
    pub name: String,
    /// The file.
    pub source: SourceSpec,
    /// The set whose key wraps it; the platform-managed key when it is not given.
    pub disk_encryption_set: Option<String>,
    /// Bytes encrypted under one tweak: 512 or 4096.
    pub sector_size: u32,
    /// The logical block size that guests see; as of [`CreateRequest`].
    pub logical_sector_size: Option<u32>,
    /// Where its directory is made, instead of below the state directory.
    pub data_dir: Option<PathBuf>,
}

/// Makes an image of a file, as a disk is made of one.
///
/// # Errors
/// As [`create`](super::super::create).
pub fn image_of_file<P: FnMut(u64)>(
    installation: &Installation,
    request: ImageRequest,
    cancel: &Cancel,
    started: impl FnOnce(&Created) -> P,
) -> Result<Created, DiskError> {
    let request = CreateRequest {
        name: request.name,
        size: None,
        source: Some(request.source),
        disk_encryption_set: request.disk_encryption_set,
        sector_size: request.sector_size,
        logical_sector_size: request.logical_sector_size,
        data_dir: request.data_dir,
    };
    create_as(ResourceKind::Image, installation, &request, cancel, started)
}

/// Makes an image of what a snapshot holds, at once: it shares its layers.
///
/// # Errors
/// [`DiskError`]; nothing of the image is left then.
pub fn image_of_snapshot(
    installation: &Installation,
    name: &str,
    snapshot: &str,
    data_dir: Option<PathBuf>,
) -> Result<(), DiskError> {
    let kind = ResourceKind::Image;
    refuse_locked(installation, kind, name)?;
    let (source, _lock) = hold(installation, ResourceKind::Snapshot, snapshot)?;
    let (from, dek) = source.unlock(installation, source.header_file()?.read()?)?;
    refuse_incomplete(&source, &from)?;
    let (parent, directory) = snapshot::resource_dir(
        installation,
        kind,
        name,
        source.directory(),
        data_dir.as_deref(),
    )?;
    let payload = snapshot::described(kind, name, &from);
    let mut staging = Staging::begin(installation, &parent, kind, name)?;
    staging.reserve(row(&payload, &directory))?;
    layer_files::share(&from.layers, source.directory(), staging.directory())?;
    HeaderFile::create(
        &staging.directory().join(HEADER),
        &Header::new(payload),
        &dek,
    )?;
    sync_dir(staging.directory()).map_err(DiskError::file("sync", staging.directory()))?;
    staging.finish(&directory)
}
