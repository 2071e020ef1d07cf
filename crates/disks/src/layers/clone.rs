//! Making a disk of a snapshot or an image, at once: it shares their layers.

use std::path::PathBuf;

use crate::layers::hold::hold;
use crate::layers::snapshot;
use crate::lifecycle::create::Created;
use crate::lifecycle::new_resource::{NewLayer, new_layer, row};
use crate::resource::directory::{HEADER, layer_paths};
use crate::resource::error::DiskError;
use crate::resource::layer_files;
use crate::resource::lookup::refuse_locked;
use crate::resource::open::geometry;
use crate::resource::staging::Staging;
use installation::Installation;
use installation::envelope::{
    CloneSource, Header, HeaderFile, HeaderPayload, MAX_DISK_SIZE, ResourceKind,
};
use keys::units::MAX_LAYERS;
use volume::create_layer;

/// What a clone is to be.
#[derive(Debug, Clone)]
pub struct CloneRequest {
    /// Its name.
    pub name: String,
    /// What it is made of: a snapshot or an image, and its name.
    pub source: (ResourceKind, String),
    /// Its size in bytes; the source's when it is not given.
    pub size: Option<u64>,
    /// The set whose key wraps its own layer, `Some(None)` for the platform-managed key; the source's
    /// when it is not given.
    pub disk_encryption_set: Option<Option<String>>,
    /// Bytes encrypted under one tweak; as the source has it when it is not given.
    pub sector_size: Option<u32>,
    /// Where its directory is made, instead of beside the source.
    pub data_dir: Option<PathBuf>,
}

/// Makes a disk that holds what a snapshot or an image holds. The layers that it shares stay under
/// the keys that they have.
///
/// # Errors
/// [`DiskError`]; nothing of the disk is left then.
pub fn clone(installation: &Installation, request: &CloneRequest) -> Result<Created, DiskError> {
    let (kind, name) = &request.source;
    refuse_locked(installation, ResourceKind::Disk, &request.name)?;
    let (source, _lock) = hold(installation, *kind, name)?;
    let found = source.header_file()?.read()?;
    let (from, _) = source.unlock_all(installation, found)?;
    let top = from.top().ok_or_else(|| source.no_layer())?;
    if from.layers.len() >= MAX_LAYERS {
        return Err(DiskError::Argument(format!(
            "the {kind} {name} has {MAX_LAYERS} layers, which is the most: no disk can be made on \
             top of them"
        )));
    }
    let unit = request.sector_size.unwrap_or(top.data_unit);
    let size = size(request, &from, unit)?;
    let (parent, directory) = snapshot::resource_dir(
        installation,
        ResourceKind::Disk,
        &request.name,
        source.directory(),
        request.data_dir.as_deref(),
    )?;
    let set = match &request.disk_encryption_set {
        Some(set) => set.clone(),
        None => from.disk_encryption_set.clone(),
    };
    let access = installation.wrapping_key(set.as_deref())?;
    let mut payload = HeaderPayload {
        size,
        disk_encryption_set: set.clone(),
        source: Some(CloneSource {
            kind: *kind,
            id: from.disk,
            name: name.clone(),
        }),
        ..snapshot::described(ResourceKind::Disk, &request.name, &from)
    };
    let new = NewLayer {
        name: &request.name,
        origin: payload.disk,
        size,
        data_unit: unit,
        set: set.as_deref(),
    };
    let (dek, layer) = new_layer(&access, &new)?;
    payload.layers.push(layer.clone());
    let mut staging = Staging::begin(installation, &parent, ResourceKind::Disk, &request.name)?;
    staging.reserve(row(&payload, &directory))?;
    layer_files::share(&from.layers, source.directory(), staging.directory())?;
    let paths = layer_paths(staging.directory(), &layer);
    create_layer(&paths, &geometry(&payload, &layer)?)?;
    let header = Header::new(payload);
    HeaderFile::create(&staging.directory().join(HEADER), &header, &dek)?;
    staging.finish(&directory)?;
    Ok(Created {
        size,
        source: None,
        looks_like: None,
    })
}

fn size(request: &CloneRequest, from: &HeaderPayload, unit: u32) -> Result<u64, DiskError> {
    let refuse = |why: String| Err(DiskError::Argument(why));
    if !matches!(unit, 512 | 4096) {
        return refuse(format!(
            "the sector size {unit} is not possible; use 512 or 4096"
        ));
    }
    let unit = u64::from(unit.max(from.logical_sector_size));
    // A header has no size that is near the end of the numbers.
    let size = request
        .size
        .unwrap_or_else(|| from.size.next_multiple_of(unit));
    if size < from.size || size > MAX_DISK_SIZE {
        return refuse(format!(
            "the size {size} is not possible: the {} {} has {} bytes, and a disk 64 TiB at most",
            request.source.0, request.source.1, from.size
        ));
    }
    if !size.is_multiple_of(unit) {
        return refuse(format!(
            "the size {size} is not a multiple of the sector size, {unit}; {} is the next one",
            size.next_multiple_of(unit)
        ));
    }
    Ok(size)
}
