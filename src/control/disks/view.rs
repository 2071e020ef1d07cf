//! What `disk list` and `disk show` print.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    DiskError, dataplane, extents, header_claims, layer_paths, lookup, reconcile_one, sweep,
};
use crate::catalog::{DiskRecord, DiskState};
use crate::control::Installation;
use crate::envelope::ResourceKind;

/// A disk, with Azure's field names where it has them.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskView {
    /// Its name.
    pub name: String,
    /// Its id.
    pub unique_id: Uuid,
    /// `Unattached`, `Attached` (in use by some process), `Creating`, `Deleting`, or `Damaged`.
    pub disk_state: &'static str,
    /// Provisioned size.
    pub disk_size_bytes: u64,
    /// Space that its files take.
    pub used_bytes: u64,
    /// Bytes of the blocks that hold data, as of the last flush; nothing when the map cannot be read.
    pub data_bytes: Option<u64>,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub time_created: OffsetDateTime,
    /// Whose key protects it.
    pub encryption: EncryptionView,
    /// The directory of its files.
    pub directory: PathBuf,
    /// Its layers, bottom to top.
    pub layers: Vec<LayerView>,
    /// Why the header cannot be read, when it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Whose key protects a disk.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EncryptionView {
    /// Azure's name of the kind of key.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The disk encryption set.
    pub disk_encryption_set_id: Option<String>,
    /// The key version that wraps the disk's DEK now.
    pub key_url: String,
}

/// A layer of a disk.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerView {
    /// The layer.
    pub id: Uuid,
    /// Bytes that are encrypted under one tweak.
    pub sector_size: u32,
    /// Its ciphertext.
    pub data: PathBuf,
    /// Its block map.
    pub map: PathBuf,
}

/// All disks, by name, after what interrupted commands left was cleaned up.
///
/// # Errors
/// [`DiskError`].
pub fn list(installation: &Installation) -> Result<Vec<DiskView>, DiskError> {
    sweep(installation, None)?;
    let rows = installation.catalog().disks()?;
    rows.into_iter()
        .map(|row| Ok(view(&reconcile_one(installation, row)?)))
        .collect()
}

/// The disk of that name.
///
/// # Errors
/// [`DiskError`].
pub fn show(installation: &Installation, name: &str) -> Result<DiskView, DiskError> {
    let row = lookup(installation, ResourceKind::Disk, name)?;
    Ok(view(&reconcile_one(installation, row)?))
}

fn view(record: &DiskRecord) -> DiskView {
    let directory = &record.directory;
    let header = header_claims(directory);
    let data_bytes = header.as_ref().ok().and_then(|header| {
        let of_layer = |layer| {
            let geometry = dataplane::geometry(header, layer).ok()?;
            extents::data_bytes(&layer_paths(directory, layer).map, &geometry)
        };
        header.layers.iter().map(of_layer).sum()
    });
    let layers = header.as_ref().map(|header| {
        let view = |layer| {
            let paths = layer_paths(directory, layer);
            LayerView {
                id: layer.id,
                sector_size: layer.data_unit,
                data: paths.data,
                map: paths.map,
            }
        };
        header.layers.iter().map(view).collect::<Vec<_>>()
    });
    let (layers, problem) = match layers {
        Ok(layers) => (layers, None),
        Err(_) if record.state != DiskState::Ready => (Vec::new(), None),
        Err(problem) => (Vec::new(), Some(problem.to_string())),
    };
    let disk_state = match (record.state, &problem) {
        (DiskState::Creating, _) => "Creating",
        (DiskState::Deleting, _) => "Deleting",
        (DiskState::Ready, Some(_)) => "Damaged",
        (DiskState::Ready, None) if layers.iter().any(|l| in_use(&l.data)) => "Attached",
        (DiskState::Ready, None) => "Unattached",
    };
    DiskView {
        name: record.name.clone(),
        unique_id: record.id,
        disk_state,
        disk_size_bytes: record.size,
        used_bytes: used_bytes(directory),
        data_bytes,
        time_created: record.created,
        encryption: EncryptionView {
            kind: match record.disk_encryption_set {
                Some(_) => "EncryptionAtRestWithCustomerKey",
                None => "EncryptionAtRestWithPlatformKey",
            },
            disk_encryption_set_id: record.disk_encryption_set.clone(),
            key_url: record.key_url.clone(),
        },
        directory: directory.clone(),
        layers,
        problem,
    }
}

/// Whether somebody has claimed the data. Asking takes a shared lock for a moment.
fn in_use(data: &Path) -> bool {
    std::fs::File::open(data).is_ok_and(|file| {
        let shared = flock(&file, FlockOperation::NonBlockingLockShared);
        matches!(shared, Err(rustix::io::Errno::WOULDBLOCK))
    })
}

/// What the files of a directory take; those that vanish meanwhile take nothing.
fn used_bytes(directory: &Path) -> u64 {
    const ST_BLOCKS_UNIT: u64 = 512; // stat(2)
    std::fs::read_dir(directory).map_or(0, |entries| {
        entries
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .map(|file| file.blocks() * ST_BLOCKS_UNIT)
            .sum()
    })
}
