//! Making a disk, empty or from an image.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use uuid::Uuid;

use crate::import;
use crate::import::{Cancel, Deadline, ImageFormat, Source, SourceSpec};
use crate::lifecycle::import_image::{import_image, open_new};
use crate::lifecycle::new_resource::{NewLayer, data_dir, free_place, new_layer, row};
use crate::resource::directory::{HEADER, layer_paths};
use crate::resource::error::DiskError;
use crate::resource::key_watch::KeyWatch;
use crate::resource::lookup::refuse_locked;
use crate::resource::open;
use crate::resource::staging::Staging;
use installation::Installation;
use installation::envelope::{
    Header, HeaderFile, HeaderPayload, LayerRecord, MAX_DISK_SIZE, ResourceKind, USUAL_SECTOR_SIZE,
    Upload, check_resource_name,
};
use keys::{DekStack, with_wiped_call_stack};

/// The data unit of a disk for which none was asked: with 4096 bytes a block of the map is one
/// unit, and XTS starts an eighth as often. Guests see 512-byte sectors either way.
pub const DEFAULT_SECTOR_SIZE: u32 = 4096;

/// What a new disk is to be.
#[derive(Debug)]
pub struct CreateRequest {
    /// Its name.
    pub name: String,
    /// Its size in bytes; the image's when it is not given.
    pub size: Option<u64>,
    /// What it is to hold; zeros when nothing is given.
    pub source: Option<SourceSpec>,
    /// The disk encryption set whose key wraps it; the platform-managed key when not given.
    pub disk_encryption_set: Option<String>,
    /// Bytes encrypted under one tweak: 512 or 4096.
    pub sector_size: u32,
    /// The logical block size that guests see, 512 or 4096; 512 when it is not given and the image does
    /// not tell.
    pub logical_sector_size: Option<u32>,
    /// Where its directory is made, instead of below the state directory.
    pub data_dir: Option<PathBuf>,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// The disk's size in bytes.
    pub size: u64,
    /// The image's format and size, when there was one.
    pub source: Option<(ImageFormat, u64)>,
    /// What else than a raw image the image looks like.
    pub looks_like: Option<String>,
}

/// Makes a disk. `started` is told once all checks have passed, and returns what is to be told how
/// many bytes of the image are done.
///
/// The DEK is wrapped and unwrapped again in the name of the disk encryption set's identity before
/// anything is written, so that a disk that could not be attached is not made.
///
/// # Errors
/// [`DiskError`]; nothing of the disk is left then.
pub fn create<P: FnMut(u64)>(
    installation: &Installation,
    request: &CreateRequest,
    cancel: &Cancel,
    started: impl FnOnce(&Created) -> P,
) -> Result<Created, DiskError> {
    create_as(ResourceKind::Disk, installation, request, cancel, started)
}

/// As [`create`], of an image that is open already; the request names none.
///
/// # Errors
/// As [`create`].
pub fn create_from<P: FnMut(u64)>(
    installation: &Installation,
    request: &CreateRequest,
    source: Source,
    cancel: &Cancel,
    started: impl FnOnce(&Created) -> P,
) -> Result<Created, DiskError> {
    let kind = (ResourceKind::Disk, None);
    create_kind(kind, installation, (request, Some(source)), cancel, started)
}

/// Makes a disk that is to be uploaded, and cannot be used before.
///
/// # Errors
/// As [`create`].
pub fn create_for_upload(
    installation: &Installation,
    request: &CreateRequest,
) -> Result<Created, DiskError> {
    let kind = (ResourceKind::Disk, Some(Upload { footer: false }));
    create_kind(
        kind,
        installation,
        (request, None),
        &Cancel::default(),
        |_: &Created| |_: u64| (),
    )
}

/// As [`create`], a disk or an image.
pub(crate) fn create_as<P: FnMut(u64)>(
    kind: ResourceKind,
    installation: &Installation,
    request: &CreateRequest,
    cancel: &Cancel,
    started: impl FnOnce(&Created) -> P,
) -> Result<Created, DiskError> {
    let request = (request, None);
    create_kind((kind, None), installation, request, cancel, started)
}

fn create_kind<P: FnMut(u64)>(
    (kind, upload): (ResourceKind, Option<Upload>),
    installation: &Installation,
    (request, opened): (&CreateRequest, Option<Source>),
    cancel: &Cancel,
    started: impl FnOnce(&Created) -> P,
) -> Result<Created, DiskError> {
    check_arguments(kind, request, opened.is_some())?;
    refuse_locked(installation, kind, &request.name)?;
    let parent = match &request.data_dir {
        Some(directory) => data_dir(directory)?,
        None => installation.resources_dir(kind),
    };
    let directory = free_place(installation, kind, &request.name, &parent)?;

    let disk = Uuid::new_v4();
    let mut staging = Staging::begin(installation, &parent, kind, &request.name)?;
    // The source heeds it too, and the key of the disk is its end.
    let cancel = &cancel.or_at(&Deadline::default());
    let mut source = match &request.source {
        Some(spec) => Some(import::open(spec, cancel)?),
        None => opened,
    };
    let logical_sector_size = logical_sector_size(request, source.as_ref())?;
    let created = Created {
        size: disk_size(request, logical_sector_size, source.as_ref())?,
        source: source.as_ref().map(|s| (s.format, s.image.size())),
        looks_like: source.as_ref().and_then(|s| s.looks_like.clone()),
    };
    let set = request.disk_encryption_set.as_deref();
    let new = NewLayer {
        name: &request.name,
        origin: disk,
        size: created.size,
        data_unit: request.sector_size,
        set,
    };
    let (dek, layer) = new_layer(&installation.wrapping_key(set)?, &new)?;
    let payload = HeaderPayload {
        kind,
        disk,
        name: request.name.clone(),
        size: created.size,
        created: OffsetDateTime::now_utc(),
        disk_encryption_set: request.disk_encryption_set.clone(),
        attach: Uuid::new_v4(),
        generation: 1,
        incremental: false,
        source: None,
        job: None,
        gone: Vec::new(),
        session: None,
        write_through: false,
        failed_sync: None,
        upload,
        logical_sector_size,
        layers: vec![layer],
    };
    staging.reserve(row(&payload, &directory))?;
    let dek = DekStack::from(dek);
    write_data(
        installation,
        &payload,
        &dek,
        staging.directory(),
        source.as_mut(),
        cancel,
        started(&created),
    )?;
    let header = Header::new(payload);
    HeaderFile::create(&staging.directory().join(HEADER), &header, dek.top())?;
    // Up to here a signal undoes everything; renaming the finished disk is one step.
    cancel.check()?;
    staging.finish(&directory)?;
    Ok(created)
}

/// Makes the layer's files and fills them, for as long as a vault grants the key.
fn write_data(
    installation: &Installation,
    payload: &HeaderPayload,
    dek: &DekStack,
    directory: &Path,
    source: Option<&mut Source>,
    cancel: &Cancel,
    progress: impl FnMut(u64),
) -> Result<(), DiskError> {
    let [layer] = payload.layers.as_slice() else {
        return Err(DiskError::Argument("a new disk has one layer".into()));
    };
    let paths = layer_paths(directory, layer);
    let geometry = open::geometry(payload, layer)?;
    volume::create_layer(&paths, &geometry)?;
    match source {
        Some(source) => {
            let paths = |layer: &LayerRecord| layer_paths(directory, layer);
            let keys = KeyWatch::of_new(installation, &payload.name, layer, cancel)?;
            let image = source.image.as_mut();
            // The ciphers leave parts of keys there.
            keys.judged(with_wiped_call_stack(|| {
                let sink = open_new(payload, paths, dek)?;
                import_image(sink, image, payload.size, cancel, progress)
            }))
        }
        None => Ok(()),
    }
}

fn check_arguments(
    kind: ResourceKind,
    request: &CreateRequest,
    is_opened: bool,
) -> Result<(), DiskError> {
    check_resource_name(kind, &request.name).map_err(DiskError::Argument)?;
    if !matches!(request.sector_size, 512 | 4096) {
        return Err(DiskError::Argument(format!(
            "the sector size {} is not possible; use 512 or 4096",
            request.sector_size
        )));
    }
    if !matches!(request.logical_sector_size, None | Some(512 | 4096)) {
        return Err(DiskError::Argument(format!(
            "the logical sector size {} is not possible; use 512 or 4096",
            request.logical_sector_size.unwrap_or_default()
        )));
    }
    if request.size.is_none() && request.source.is_none() && !is_opened {
        return Err(DiskError::Argument(
            "give --size SIZE for an empty disk, or --source with an image file, a snapshot or an image"
                .into(),
        ));
    }
    Ok(())
}

/// What is asked for, else 512. An image that tells of larger sectors shows its guest no partition
/// behind smaller ones, so that has to be said.
fn logical_sector_size(request: &CreateRequest, source: Option<&Source>) -> Result<u32, DiskError> {
    match (request.logical_sector_size, source) {
        (Some(size), _) => Ok(size),
        (None, Some(source)) if source.logical_sector_size == Some(4096) => {
            Err(DiskError::Argument(
                "the image is that of a disk with logical sectors of 4096 bytes (its GPT begins at byte \
                 4096): give --logical-sector-size 4096, and boot it through UEFI, since SeaBIOS reads \
                 sectors of 512 bytes only; or insist with --logical-sector-size 512"
                    .into(),
            ))
        }
        (None, _) => Ok(USUAL_SECTOR_SIZE),
    }
}

/// The size asked for, else the image's, filled up to whole sectors.
fn disk_size(
    request: &CreateRequest,
    logical: u32,
    source: Option<&Source>,
) -> Result<u64, DiskError> {
    let unit = u64::from(request.sector_size.max(logical));
    let image = source.map_or(0, |source| source.image.size());
    let refuse = |why: String| Err(DiskError::Argument(why));
    let filled_up = |size: u64| size.min(MAX_DISK_SIZE + 1).next_multiple_of(unit);
    let size = request.size.unwrap_or_else(|| filled_up(image));
    if size == 0 || size > MAX_DISK_SIZE {
        return refuse(format!(
            "the size {size} is not possible; a disk has 1 sector to 64 TiB ({MAX_DISK_SIZE} bytes)"
        ));
    }
    if !size.is_multiple_of(unit) {
        return refuse(format!(
            "the size {size} is not a multiple of the sector size, {unit}; {} is the next one",
            filled_up(size)
        ));
    }
    if size < image {
        return refuse(format!(
            "the size {size} is less than the {image} bytes of the image; a disk is not cut off"
        ));
    }
    Ok(size)
}
