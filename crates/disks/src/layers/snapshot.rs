//! Making a snapshot or an image of a disk, whether or not a guest uses it.
//!
//! # Order of steps
//!
//! The snapshot is made as a disk is (see `staging.rs`), with hard links of the disk's layers and a
//! header of its own. It gets its name only after the disk's header names a new top layer, so that a
//! snapshot never has a layer that is written to. A crash between those two leaves a disk with a
//! layer that nothing needs by itself, which the catalog has noted before: it is merged like that of
//! a deleted snapshot.
//!
//! A disk that was not written to since the last of these gets no new layer: see `freeze.rs`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::layers::freeze::{Frozen, freeze};
use crate::layers::swap_volume::SwapVolume;
use crate::lifecycle::new_resource::{data_dir, free_place, row};
use crate::resource::directory::{HEADER, parent_of};
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::layer_files;
use crate::resource::staging::Staging;
use installation::Installation;
use installation::envelope::{
    Header, HeaderFile, HeaderPayload, ResourceKind, check_resource_name,
};
use installation::files::sync_dir;

/// A snapshot or an image that is to be made of a disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotRequest {
    /// A snapshot or an image.
    pub kind: ResourceKind,
    /// Its name.
    pub name: String,
    /// Noted for a snapshot.
    pub incremental: bool,
    /// Where its directory is made, instead of beside the disk.
    pub data_dir: Option<PathBuf>,
}

/// Makes a snapshot or an image of what `disk` holds now, whose user is `volume`. It takes the same
/// time whatever the disk holds.
///
/// # Errors
/// [`DiskError`]. Unless it is [`DiskError::Attached`] the disk is as before, and there is no
/// snapshot.
pub(super) fn create_snapshot(
    installation: &Installation,
    request: &SnapshotRequest,
    disk: &Disk,
    volume: &mut dyn SwapVolume,
) -> Result<(), DiskError> {
    let SnapshotRequest { kind, name, .. } = request;
    let (parent, directory) = resource_dir(
        installation,
        *kind,
        name,
        disk.directory(),
        request.data_dir.as_deref(),
    )?;
    let mut staging = Staging::begin(installation, &parent, *kind, name)?;
    let mut noted = None;
    let take = |frozen: &Frozen<'_>| {
        let payload = HeaderPayload {
            generation: frozen.header.generation,
            incremental: request.incremental,
            ..described(*kind, name, frozen.header)
        };
        staging.reserve(row(&payload, &directory))?;
        let layers = &frozen.header.layers;
        layer_files::share(layers, disk.directory(), staging.directory())?;
        let header = Header::new(payload);
        HeaderFile::create(&staging.directory().join(HEADER), &header, frozen.dek)?;
        sync_dir(staging.directory()).map_err(DiskError::file("sync", staging.directory()))?;
        if let Some(top) = layers.last().filter(|_| frozen.is_new) {
            installation.catalog().insert_merge(top.id)?;
            noted = Some(top.id);
        }
        Ok(())
    };
    freeze(installation, disk, volume, take)?;
    staging.finish(&directory)?;
    if let Some(layer) = noted {
        installation.catalog().delete_merge(layer)?;
    }
    Ok(())
}

/// A header that says of a new resource what that of another says.
pub(super) fn described(kind: ResourceKind, name: &str, of: &HeaderPayload) -> HeaderPayload {
    HeaderPayload {
        kind,
        disk: Uuid::new_v4(),
        name: name.into(),
        created: OffsetDateTime::now_utc(),
        attach: Uuid::new_v4(),
        generation: 1,
        incremental: false,
        source: None,
        job: None,
        gone: Vec::new(),
        session: None,
        write_through: false,
        failed_sync: None,
        upload: None,
        ..of.clone()
    }
}

/// The directory in which a new resource gets its own, and that: where `given` says, or beside the one
/// that it shares layers of.
pub(super) fn resource_dir(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
    beside: &Path,
    given: Option<&Path>,
) -> Result<(PathBuf, PathBuf), DiskError> {
    check_resource_name(kind, name).map_err(DiskError::Argument)?;
    let parent = match given {
        Some(given) => data_dir(given)?,
        None => default_resource_dir(installation, kind, beside),
    };
    let directory = free_place(installation, kind, name, &parent)?;
    Ok((parent, directory))
}

/// Below the state directory for what is there, else below the directory in which the disk's is.
fn default_resource_dir(installation: &Installation, kind: ResourceKind, beside: &Path) -> PathBuf {
    let at = parent_of(beside);
    let own = ResourceKind::ALL.map(|kind| installation.resources_dir(kind));
    if own.iter().any(|dir| dir == at) {
        installation.resources_dir(kind)
    } else {
        // Snapshots and images are in folders of their own, beside the disks.
        let name_of = |kind| {
            installation
                .resources_dir(kind)
                .file_name()
                .map(PathBuf::from)
        };
        let folders = [ResourceKind::Snapshot, ResourceKind::Image].map(name_of);
        let inside = folders
            .iter()
            .flatten()
            .any(|folder| at.file_name() == Some(folder.as_os_str()));
        let base = if inside { parent_of(at) } else { at };
        match (kind, name_of(kind)) {
            (ResourceKind::Disk, _) | (_, None) => base.into(),
            (_, Some(folder)) => base.join(folder),
        }
    }
}
