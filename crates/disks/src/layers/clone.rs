//! Making a disk of a snapshot, an image or another disk, at once: it shares their layers.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

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
use installation::files::sync_dir;
use keys::units::MAX_LAYERS;
use volume::create_layer;

/// What a clone is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CloneRequest {
    /// Its name.
    pub name: String,
    /// What it is made of, and its name.
    pub source: (ResourceKind, String),
    /// Its size in bytes; the source's when it is not given.
    pub size: Option<u64>,
    /// The set whose key wraps its own layer, `Some(None)` for the platform-managed key; the source's
    /// when it is not given.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "given"
    )]
    pub disk_encryption_set: Option<Option<String>>,
    /// Bytes encrypted under one tweak; as the source has it when it is not given.
    pub sector_size: Option<u32>,
    /// Where its directory is made, instead of beside the source.
    pub data_dir: Option<PathBuf>,
}

/// What is given, of which `null` is a value too.
fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// Makes a disk that holds what a snapshot or an image holds. The layers that it shares stay under
/// the keys that they have. A disk is cloned by [`LayerOp::CloneDisk`](super::LayerOp::CloneDisk).
///
/// # Errors
/// [`DiskError`]; nothing of the disk is left then.
pub fn clone(installation: &Installation, request: &CloneRequest) -> Result<Created, DiskError> {
    let (kind, name) = &request.source;
    if *kind == ResourceKind::Disk {
        return Err(DiskError::Argument(format!(
            "the disk {name} may be written to, and its layers are not shared as they are"
        )));
    }
    refuse_locked(installation, ResourceKind::Disk, &request.name)?;
    let (source, _lock) = hold(installation, *kind, name)?;
    let found = source.header_file()?.read()?;
    let (from, _) = source.unlock_all(installation, found)?;
    let mut new = NewClone::begin(installation, request, source.directory())?;
    let size = new.fill(&from, source.directory())?;
    new.finish()?;
    Ok(Created {
        size,
        source: None,
        looks_like: None,
    })
}

/// A clone in the making. Unless it is finished, dropping it removes all of it.
pub(super) struct NewClone<'a> {
    installation: &'a Installation,
    request: &'a CloneRequest,
    staging: Staging<'a>,
    directory: PathBuf,
}

impl<'a> NewClone<'a> {
    /// Finds its place, which is beside that directory if it is not said where.
    pub(super) fn begin(
        installation: &'a Installation,
        request: &'a CloneRequest,
        beside: &Path,
    ) -> Result<Self, DiskError> {
        let kind = ResourceKind::Disk;
        let data_dir = request.data_dir.as_deref();
        let (parent, directory) =
            snapshot::resource_dir(installation, kind, &request.name, beside, data_dir)?;
        Ok(Self {
            installation,
            request,
            staging: Staging::begin(installation, &parent, kind, &request.name)?,
            directory,
        })
    }

    /// Makes all of it, on top of the layers of `from`, whose files are in that directory; its size.
    pub(super) fn fill(&mut self, from: &HeaderPayload, files: &Path) -> Result<u64, DiskError> {
        let (kind, name) = &self.request.source;
        let nothing = || DiskError::Argument(format!("the {kind} {name} has no layer"));
        let top = from.top().ok_or_else(nothing)?;
        if from.layers.len() >= MAX_LAYERS {
            return Err(DiskError::Argument(format!(
                "the {kind} {name} has {MAX_LAYERS} layers, which is the most: no disk can be made on \
                 top of them"
            )));
        }
        let unit = self.request.sector_size.unwrap_or(top.data_unit);
        let size = size(self.request, from, unit)?;
        let set = match &self.request.disk_encryption_set {
            Some(set) => set.clone(),
            None => from.disk_encryption_set.clone(),
        };
        let access = self.installation.wrapping_key(set.as_deref())?;
        let mut payload = HeaderPayload {
            size,
            disk_encryption_set: set.clone(),
            source: Some(CloneSource {
                kind: *kind,
                id: from.disk,
                name: name.clone(),
            }),
            ..snapshot::described(ResourceKind::Disk, &self.request.name, from)
        };
        let new = NewLayer {
            name: &self.request.name,
            origin: payload.disk,
            size,
            data_unit: unit,
            set: set.as_deref(),
        };
        let (dek, layer) = new_layer(&access, &new)?;
        payload.layers.push(layer.clone());
        self.staging.reserve(row(&payload, &self.directory))?;
        let directory = self.staging.directory();
        layer_files::share(&from.layers, files, directory)?;
        create_layer(
            &layer_paths(directory, &layer),
            &geometry(&payload, &layer)?,
        )?;
        HeaderFile::create(&directory.join(HEADER), &Header::new(payload), &dek)?;
        sync_dir(directory).map_err(DiskError::file("sync", directory))?;
        Ok(size)
    }

    /// Gives it its name.
    pub(super) fn finish(self) -> Result<(), DiskError> {
        self.staging.finish(&self.directory)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_arrives_as_it_was_sent() {
        for set in [None, Some(None), Some(Some("s".to_owned()))] {
            let request = CloneRequest {
                name: "c".into(),
                source: (ResourceKind::Disk, "d".into()),
                size: None,
                disk_encryption_set: set.clone(),
                sector_size: None,
                data_dir: None,
            };
            let text = serde_json::to_string(&request).unwrap();
            let arrived: CloneRequest = serde_json::from_str(&text).unwrap();
            assert_eq!(arrived.disk_encryption_set, set, "{text}");
        }
    }
}
