//! Making a disk of a snapshot, an image or another disk, at once: it shares their layers.
//!
//! # Deep copies
//!
//! A deep copy is made in the same way. Its header has the job from the beginning that copies all that it inherits into
//! its own layer, and until that is done it is read as any clone: so whatever dies leaves a copy that is whole, and a job
//! that is gone on with. It may be a snapshot too: into its own layer, which nobody has written to, goes the very content
//! that it inherits, so that it holds the same at every moment. Nothing is made of it meanwhile.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::layers::hold::hold;
use crate::layers::push::refuse_incomplete;
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
    CloneSource, Header, HeaderFile, HeaderPayload, Job, JobKind, MAX_DISK_SIZE, ResourceKind,
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

/// What a deep copy is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeepCopyRequest {
    /// A disk or a snapshot.
    pub kind: ResourceKind,
    /// What it is made of, and what else it is as a clone.
    pub request: CloneRequest,
    /// Noted for a snapshot.
    pub incremental: bool,
    /// Bytes per second to copy at most.
    pub rate: Option<u64>,
}

/// What is made on top of the layers of something.
#[derive(Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// A disk that shares them.
    Clone(&'a CloneRequest),
    /// What shares them until they are copied.
    DeepCopy(&'a DeepCopyRequest),
}

impl<'a> Wanted<'a> {
    fn request(self) -> &'a CloneRequest {
        match self {
            Self::Clone(request) => request,
            Self::DeepCopy(deep) => &deep.request,
        }
    }

    fn kind(self) -> ResourceKind {
        match self {
            Self::Clone(_) => ResourceKind::Disk,
            Self::DeepCopy(deep) => deep.kind,
        }
    }

    fn is_incremental(self) -> bool {
        matches!(self, Self::DeepCopy(deep) if deep.incremental)
    }

    /// The job that its header has from the beginning.
    fn job(self, from: &HeaderPayload) -> Option<Job> {
        match self {
            Self::Clone(_) => None,
            Self::DeepCopy(deep) => Some(Job {
                kind: JobKind::Flatten,
                drop: from.layers.iter().map(|layer| layer.id).collect(),
                paused: false,
                rate: deep.rate,
            }),
        }
    }
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
    make(installation, Wanted::Clone(request))
}

/// Makes a deep copy of a snapshot or an image, whose data its job copies:
/// [`run_unattached`](super::run_unattached), or whoever has it attached. A disk is copied by
/// [`LayerOp::DeepCopy`](super::LayerOp::DeepCopy).
///
/// # Errors
/// [`DiskError`]; nothing of the copy is left then.
pub fn deep_copy(
    installation: &Installation,
    request: &DeepCopyRequest,
) -> Result<Created, DiskError> {
    make(installation, Wanted::DeepCopy(request))
}

fn make(installation: &Installation, wanted: Wanted<'_>) -> Result<Created, DiskError> {
    let request = wanted.request();
    let (kind, name) = &request.source;
    if *kind == ResourceKind::Disk {
        return Err(DiskError::Argument(format!(
            "the disk {name} may be written to, and its layers are not shared as they are"
        )));
    }
    refuse_locked(installation, wanted.kind(), &request.name)?;
    let (source, _lock) = hold(installation, *kind, name)?;
    let found = source.header_file()?.read()?;
    let (from, _) = source.unlock_all(installation, found)?;
    refuse_incomplete(&source, &from)?;
    let mut new = NewClone::begin(installation, wanted, source.directory())?;
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
    wanted: Wanted<'a>,
    staging: Staging<'a>,
    directory: PathBuf,
}

impl<'a> NewClone<'a> {
    /// Finds its place, which is beside that directory if it is not said where.
    pub(super) fn begin(
        installation: &'a Installation,
        wanted: Wanted<'a>,
        beside: &Path,
    ) -> Result<Self, DiskError> {
        let (kind, request) = (wanted.kind(), wanted.request());
        let data_dir = request.data_dir.as_deref();
        let (parent, directory) =
            snapshot::resource_dir(installation, kind, &request.name, beside, data_dir)?;
        Ok(Self {
            installation,
            wanted,
            staging: Staging::begin(installation, &parent, kind, &request.name)?,
            directory,
        })
    }

    /// Makes all of it, on top of the layers of `from`, whose files are in that directory; its size.
    pub(super) fn fill(&mut self, from: &HeaderPayload, files: &Path) -> Result<u64, DiskError> {
        let (wanted, request) = (self.wanted, self.wanted.request());
        let (kind, name) = &request.source;
        let nothing = || DiskError::Argument(format!("the {kind} {name} has no layer"));
        let top = from.top().ok_or_else(nothing)?;
        if from.layers.len() >= MAX_LAYERS {
            return Err(DiskError::Argument(format!(
                "the {kind} {name} has {MAX_LAYERS} layers, which is the most: nothing can be made on \
                 top of them"
            )));
        }
        let unit = request.sector_size.unwrap_or(top.data_unit);
        let size = size(request, from, unit)?;
        let set = match &request.disk_encryption_set {
            Some(set) => set.clone(),
            None => from.disk_encryption_set.clone(),
        };
        let access = self.installation.wrapping_key(set.as_deref())?;
        let mut payload = HeaderPayload {
            size,
            disk_encryption_set: set.clone(),
            incremental: wanted.is_incremental(),
            source: Some(CloneSource {
                kind: *kind,
                id: from.disk,
                name: name.clone(),
            }),
            job: wanted.job(from),
            ..snapshot::described(wanted.kind(), &request.name, from)
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
    use crate::import::Cancel;
    use crate::layers::{LayerOp, Unattached, delete_source, image_of_snapshot, run_unattached};
    use crate::resource::directory::header_claims;
    use crate::resource::disk::Disk;
    use crate::resource::offline::open_existing;
    use crate::resource::session::tests::attached;
    use volume::pipeline::DiskIo;

    const SNAPSHOT: ResourceKind = ResourceKind::Snapshot;

    fn of(name: &str, source: (ResourceKind, &str)) -> CloneRequest {
        CloneRequest {
            name: name.into(),
            source: (source.0, source.1.into()),
            size: None,
            disk_encryption_set: None,
            sector_size: None,
            data_dir: None,
        }
    }

    /// A snapshot that is a deep copy.
    fn deep(name: &str, source: (ResourceKind, &str)) -> DeepCopyRequest {
        DeepCopyRequest {
            kind: SNAPSHOT,
            request: of(name, source),
            incremental: true,
            rate: None,
        }
    }

    /// An installation with the disk `d`, which begins with this byte.
    struct World {
        _dir: tempfile::TempDir,
        runtime: tempfile::TempDir,
        installation: Installation,
    }

    impl World {
        fn new(byte: u8) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
            let installation = Installation::open(dir.path().join("state")).unwrap();
            let disk = attached(&installation, runtime.path());
            let this = Self {
                _dir: dir,
                runtime,
                installation,
            };
            drop(this.user(&disk));
            let mut io = this.opened(&disk);
            io.write_at(0, &[byte; 4096]).unwrap();
            io.flush().unwrap();
            this
        }

        fn find(&self, kind: ResourceKind, name: &str) -> Disk {
            Disk::of_kind(&self.installation, kind, name).unwrap()
        }

        fn header(&self, kind: ResourceKind, name: &str) -> HeaderPayload {
            header_claims(self.find(kind, name).directory()).unwrap()
        }

        fn user(&self, disk: &Disk) -> Unattached {
            let claim = disk.claim().unwrap();
            Unattached::settled(&self.installation, disk, claim, self.runtime.path()).unwrap()
        }

        fn opened(&self, disk: &Disk) -> DiskIo {
            let claim = disk.claim().unwrap();
            let found = disk.header_file().unwrap().read().unwrap();
            let (header, deks) = disk.unlock_all(&self.installation, found).unwrap();
            open_existing(disk, claim, &header, &deks, self.runtime.path()).unwrap()
        }

        fn first_byte(&self, kind: ResourceKind, name: &str) -> u8 {
            let mut block = [0; 4096];
            let mut io = self.opened(&self.find(kind, name));
            io.read_at(0, &mut block).unwrap();
            block[0]
        }

        /// Does the job of a snapshot; whether it is done.
        fn run(&self, name: &str, cancel: &Cancel) -> Result<bool, DiskError> {
            let snapshot = self.find(SNAPSHOT, name);
            let mut user = self.user(&snapshot);
            run_unattached(
                &self.installation,
                &snapshot,
                &mut user,
                cancel,
                &mut |_| {},
            )
        }
    }

    #[test]
    fn a_snapshot_that_is_a_deep_copy_shares_nothing_in_the_end() {
        let world = World::new(1);
        let installation = &world.installation;
        let disk = world.find(ResourceKind::Disk, "d");
        let mut user = world.user(&disk);
        LayerOp::DeepCopy(deep("s", (ResourceKind::Disk, "d")))
            .apply(installation, &disk, &mut user)
            .unwrap();
        drop(user);
        let made = world.header(SNAPSHOT, "s");
        assert_eq!(made.layers.len(), 2);
        assert!(made.job.is_some() && made.source.is_some() && made.incremental);
        assert_eq!(world.first_byte(SNAPSHOT, "s"), 1);
        // Nothing is made of it yet.
        let refused = clone(installation, &of("c", (SNAPSHOT, "s"))).map(drop);
        assert!(matches!(refused, Err(DiskError::Incomplete { .. })));
        let refused = image_of_snapshot(installation, "i", "s", None);
        assert!(matches!(refused, Err(DiskError::Incomplete { .. })));

        // What was stopped goes on.
        let stopped = Cancel::default();
        stopped.request();
        assert!(world.run("s", &stopped).is_err());
        assert!(world.header(SNAPSHOT, "s").job.is_some());
        assert!(world.run("s", &Cancel::default()).unwrap());
        let whole = world.header(SNAPSHOT, "s");
        assert_eq!((whole.job, whole.source), (None, None));
        assert_eq!(whole.layers, made.layers[1..]);
        assert_eq!(world.first_byte(SNAPSHOT, "s"), 1);

        // One of a snapshot, which stays until all of it is copied.
        deep_copy(installation, &deep("t", (SNAPSHOT, "s"))).unwrap();
        let delete = || delete_source(installation, SNAPSHOT, "s", world.runtime.path());
        assert!(matches!(delete(), Err(DiskError::BeingCopied { .. })));
        assert!(world.run("t", &Cancel::default()).unwrap());
        delete().unwrap();
        clone(installation, &of("c", (SNAPSHOT, "t"))).unwrap();
        assert_eq!(world.first_byte(ResourceKind::Disk, "c"), 1);
    }

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
