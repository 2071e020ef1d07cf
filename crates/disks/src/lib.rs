//! Disks: making, listing, growing, deleting, re-wrapping and decrypting them.
//!
//! A disk is a directory with a `header` and, for each layer, `LAYER.data` and `LAYER.map`; the
//! catalog's row is an index of it. Where both say different things the header is right, because
//! it is written first: [`reconcile`] brings the catalog up to date.
//!
//! # Locks
//!
//! * Whoever uses a disk's data, attached or offline, holds an exclusive `flock` of the top layer's
//!   data file ([`Disk::claim`]). Whoever reads a snapshot or an image holds a shared one of its top
//!   layer's; whoever deletes it, or takes a layer from it, holds it exclusively.
//! * Updates of the header serialise by `flock` on the header file; they need no claim, so a disk
//!   is re-wrapped while attached.
//! * Whoever makes or deletes a disk holds a `flock` of its directory.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use installation::Installation;
use installation::catalog::{CatalogError, DiskRecord, DiskState, LayerUse, Stored};
use installation::envelope::{EnvelopeError, HeaderFile, HeaderPayload, LayerRecord, ResourceKind};
use volume::LayerPaths;
use volume::pipeline::PipelineError;
use volume::store::LayerFile;

mod check;
mod check_layers;
mod copy;
mod create;
mod decrypt;
mod delete;
pub mod des;
mod error;
mod export;
mod extents;
mod failed_sync;
pub mod import;
mod layers;
mod lost;
mod open;
mod rebuild_catalog;
mod rebuild_resources;
mod register;
mod session;
mod size;
mod staging;
mod unlock;
mod unregister;
mod update;
mod view;

pub use check::{ByteRange, CheckReport, Problem, ProblemKind, check};
pub use copy::copy;
pub use create::{CreateRequest, Created, DEFAULT_SECTOR_SIZE, create};
pub use decrypt::{Plaintext, decrypt};
pub use delete::delete;
pub use error::DiskError;
pub use export::{ExportRequest, Since, export};
pub use failed_sync::{as_in_runtime_map, synced_file};
pub use layers::{
    Applied, ChangeLayers, ClaimedElsewhere, CloneRequest, ImageRequest, JobChange, JobProgress,
    LayerOp, NewLayers, SnapshotRequest, SwapVolume, Unattached, clone, delete_source,
    image_of_file, image_of_snapshot, layers_to_drop, merge_all, run_unattached,
};
pub use open::{geometry, layer_map, lower_layers, lower_maps, open_files};
pub use rebuild_catalog::{Rebuilt, RebuiltSet, rebuild};
pub use register::{RegisterRequest, register};
pub use session::{Left, Unflushed, begun, ended, log_other_boot};
pub use size::parse_size;
pub use staging::sweep;
pub use unregister::{forget_departed, unregister};
pub use update::{NewKey, rewrap, update};
pub use view::{DiskView, EncryptionView, JobView, LayerView, SessionView, list, show};

/// The name of the header in a disk's directory.
const HEADER: &str = "header";

/// A disk of the catalog, or a snapshot or an image, whose files are complete.
pub struct Disk {
    record: DiskRecord,
}

impl Disk {
    /// The disk of that name.
    ///
    /// # Errors
    /// When there is none, or it is being made or deleted.
    pub fn find(installation: &Installation, name: &str) -> Result<Self, DiskError> {
        Self::of_kind(installation, ResourceKind::Disk, name)
    }

    /// What has that name among those of its kind.
    ///
    /// # Errors
    /// When there is none, or it is being made or deleted.
    pub fn of_kind(
        installation: &Installation,
        kind: ResourceKind,
        name: &str,
    ) -> Result<Self, DiskError> {
        let record = lookup(installation, kind, name)?.record;
        if matches!(record.state, DiskState::Deleting | DiskState::Erased) {
            return Err(DiskError::Unfinished {
                kind,
                name: name.into(),
                doing: "deleted",
            });
        }
        Ok(Self { record })
    }

    /// What it is.
    pub fn kind(&self) -> ResourceKind {
        self.record.kind
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Its id.
    pub fn id(&self) -> uuid::Uuid {
        self.record.id
    }

    /// The directory of its files.
    pub fn directory(&self) -> &Path {
        &self.record.directory
    }

    /// Its header file.
    ///
    /// # Errors
    /// [`DiskError::Envelope`].
    pub fn header_file(&self) -> Result<HeaderFile, DiskError> {
        Ok(HeaderFile::open(&self.directory().join(HEADER))?)
    }

    /// The files of one of its layers.
    pub fn layer_paths(&self, layer: &LayerRecord) -> LayerPaths {
        layer_paths(self.directory(), layer)
    }

    /// Claims the disk's data for the caller alone, for as long as the returned file, or a
    /// duplicate of it, is open. It is the top layer's data.
    ///
    /// # Errors
    /// [`DiskError::InUse`] when somebody has it, [`DiskError::OtherDisk`].
    pub fn claim(&self, header: &HeaderPayload) -> Result<LayerFile, DiskError> {
        self.check_identity(header)?;
        let top = header.top().ok_or_else(|| self.no_layer())?;
        claim_data(self.name(), &self.layer_paths(top).data)
    }

    /// As [`Disk::claim`] for a snapshot or an image that is only read, together with others who do:
    /// none of its layers is changed or taken away meanwhile.
    fn claim_to_read(&self, header: &HeaderPayload) -> Result<LayerFile, DiskError> {
        self.check_identity(header)?;
        let top = header.top().ok_or_else(|| self.no_layer())?;
        let path = self.layer_paths(top).data;
        let data = LayerFile::open(&path).map_err(PipelineError::from)?;
        claim_as(
            FlockOperation::NonBlockingLockShared,
            self.name(),
            (data, &path),
        )
    }

    /// As [`Disk::claim`] of a disk that nobody may use meanwhile, and that is not changed: its file system may
    /// be read-only.
    fn claim_to_look(&self, header: &HeaderPayload) -> Result<LayerFile, DiskError> {
        self.check_identity(header)?;
        let top = header.top().ok_or_else(|| self.no_layer())?;
        let path = self.layer_paths(top).data;
        let data = LayerFile::open(&path)
            .or_else(|error| match error.kind() {
                std::io::ErrorKind::ReadOnlyFilesystem => LayerFile::open_to_read(&path),
                _ => Err(error),
            })
            .map_err(PipelineError::from)?;
        claim_as(
            FlockOperation::NonBlockingLockExclusive,
            self.name(),
            (data, &path),
        )
    }

    /// Has the catalog say what the disk's header says.
    fn note(&self, installation: &Installation) -> Result<(), DiskError> {
        let row = lookup(installation, self.kind(), self.name())?;
        reconcile_one(installation, row)?;
        Ok(())
    }

    fn check_identity(&self, claims: &HeaderPayload) -> Result<(), DiskError> {
        if claims.disk == self.record.id {
            return Ok(());
        }
        Err(DiskError::OtherDisk {
            name: self.record.name.clone(),
            path: self.record.directory.clone(),
            found: claims.disk,
        })
    }

    /// That somebody has claimed it.
    fn in_use(&self) -> DiskError {
        let claimed = header_claims(self.directory())
            .ok()
            .and_then(|header| Some(self.layer_paths(header.top()?).data));
        DiskError::InUse {
            name: self.name().into(),
            path: claimed.unwrap_or_else(|| self.directory().into()),
        }
    }

    /// A header that was read has a layer; this keeps the claim out of the callers.
    fn no_layer(&self) -> DiskError {
        EnvelopeError::Malformed {
            path: self.directory().join(HEADER),
            reason: "it has no layer".into(),
        }
        .into()
    }
}

/// Brings the catalog's rows up to date with the headers: after a crash between a header's update
/// and the catalog's, and for a disk whose directory was restored from a backup. A disk whose
/// header cannot be read keeps its row.
///
/// It waits for updates of headers that are under way.
///
/// # Errors
/// [`CatalogError`] when the catalog cannot be read.
pub fn reconcile(installation: &Installation) -> Result<(), CatalogError> {
    for row in installation.catalog().resources()? {
        if row.record.state == DiskState::Ready {
            reconcile_one(installation, row)?;
        }
    }
    Ok(())
}

/// As [`reconcile`] for one row; returns what it says then.
fn reconcile_one(
    installation: &Installation,
    row: Stored<DiskRecord>,
) -> Result<DiskRecord, CatalogError> {
    let claims = match header_claims(&row.record.directory) {
        Ok(claims) if claims.disk == row.record.id => claims,
        Ok(_) | Err(_) => return Ok(row.record),
    };
    let record = described(&row.record, &claims);
    if record == row.record {
        return Ok(record);
    }
    match installation.catalog().update_disk(row.rev, &record) {
        Ok(_) => Ok(record),
        // Whoever was faster had a newer header.
        Err(CatalogError::Changed { .. }) => {
            let now = installation.catalog().resource(record.kind, &record.name)?;
            Ok(now.record)
        }
        // The header names a set that this installation does not have: the disk came from another.
        Err(e @ CatalogError::NotFound { .. }) => {
            log::warn!("the header of the disk {} counts, but: {e}", record.name);
            Ok(record)
        }
        Err(e) => Err(e),
    }
}

/// A row with what the header says.
fn described(record: &DiskRecord, header: &HeaderPayload) -> DiskRecord {
    DiskRecord {
        size: header.size,
        disk_encryption_set: header.disk_encryption_set.clone(),
        key_url: header
            .top()
            .map_or_else(|| record.key_url.clone(), |layer| layer.envelope.key_url()),
        layers: layer_uses(header),
        ..record.clone()
    }
}

/// The layers of a header as the catalog has them.
fn layer_uses(header: &HeaderPayload) -> Vec<LayerUse> {
    let layers = header.layers.iter();
    layers
        .map(|layer| LayerUse {
            layer: layer.id,
            disk_encryption_set: layer.disk_encryption_set.clone(),
            key_url: layer.envelope.key_url(),
        })
        .collect()
}

/// Refuses a name that something of this kind has already.
fn refuse_taken_name(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
) -> Result<(), CatalogError> {
    match installation.catalog().resource(kind, name) {
        Err(CatalogError::NotFound { .. }) => Ok(()),
        Ok(_) => Err(CatalogError::Exists {
            kind: kind.into(),
            name: name.into(),
        }),
        Err(error) => Err(error),
    }
}

/// The catalog's row of a resource that is not in the making.
fn lookup(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
) -> Result<Stored<DiskRecord>, DiskError> {
    let catalog = installation.catalog();
    let row = catalog.resource(kind, name)?;
    if row.record.state != DiskState::Creating {
        return Ok(row);
    }
    sweep(installation, None)?;
    let row = catalog.resource(kind, name)?;
    if row.record.state == DiskState::Creating {
        return Err(DiskError::Unfinished {
            kind,
            name: name.into(),
            doing: "created",
        });
    }
    Ok(row)
}

/// The kinds of those disks, snapshots and images that have a name.
///
/// # Errors
/// [`CatalogError`].
pub fn resources_named(
    installation: &Installation,
    name: &str,
) -> Result<Vec<ResourceKind>, CatalogError> {
    let rows = installation.catalog().resources()?.into_iter();
    Ok(rows
        .filter(|row| row.record.name == name)
        .map(|row| row.record.kind)
        .collect())
}

/// What the header in a disk's directory claims, unauthenticated.
fn header_claims(directory: &Path) -> Result<HeaderPayload, EnvelopeError> {
    let header = HeaderFile::open(&directory.join(HEADER))?.read()?;
    Ok(header.claims().clone())
}

/// The directory in which `path` is.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn layer_paths(directory: &Path, layer: &LayerRecord) -> LayerPaths {
    let file = |extension: &str| -> PathBuf { directory.join(format!("{}.{extension}", layer.id)) };
    LayerPaths {
        data: file("data"),
        map: file("map"),
    }
}

/// Opens and exclusively locks a layer's data file. `disk show` holds a shared lock for a moment to
/// see whether there is a lock, so a refusal counts only when it lasts.
fn claim_data(name: &str, path: &Path) -> Result<LayerFile, DiskError> {
    let data = LayerFile::open(path).map_err(PipelineError::from)?;
    claim_as(FlockOperation::NonBlockingLockExclusive, name, (data, path))
}

fn claim_as(
    lock: FlockOperation,
    name: &str,
    (data, path): (LayerFile, &Path),
) -> Result<LayerFile, DiskError> {
    const TRIES: u32 = 20;
    for _ in 0..TRIES {
        match flock(data.file(), lock) {
            Ok(()) => return Ok(data),
            Err(Errno::WOULDBLOCK) => thread::sleep(Duration::from_millis(10)),
            Err(e) => return Err(DiskError::file("lock", path)(e.into())),
        }
    }
    Err(DiskError::InUse {
        name: name.into(),
        path: path.into(),
    })
}
