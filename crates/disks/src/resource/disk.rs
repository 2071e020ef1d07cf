//! A disk, a snapshot or an image whose files are complete, and who may use its data.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::resource::directory::{HEADER, header_claims, layer_paths};
use crate::resource::error::DiskError;
use crate::resource::holder;
use installation::catalog::DiskRecord;
use installation::envelope::{EnvelopeError, HeaderFile, HeaderPayload, LayerRecord, ResourceKind};
use volume::LayerPaths;
use volume::pipeline::PipelineError;
use volume::store::LayerFile;

/// A disk of the catalog, or a snapshot or an image, whose files are complete.
pub struct Disk {
    pub(crate) record: DiskRecord,
}

impl Disk {
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
    /// [`DiskError::InUse`] when somebody has it, [`DiskError::Awaited`] when an attach waits for it,
    /// [`DiskError::OtherDisk`], [`DiskError::Uploading`].
    pub fn claim(&self, header: &HeaderPayload) -> Result<LayerFile, DiskError> {
        let claim = self.claim_to_serve(header)?;
        match self.awaited_by() {
            // It is to find the disk as whoever let go of it has left it.
            Some(_) => Err(self.is_awaited()),
            None => Ok(claim),
        }
    }

    /// As [`Disk::claim`] for an attach, whoever waits.
    ///
    /// # Errors
    /// [`DiskError::InUse`] when somebody has it, [`DiskError::OtherDisk`], [`DiskError::Uploading`].
    pub fn claim_to_serve(&self, header: &HeaderPayload) -> Result<LayerFile, DiskError> {
        match header.upload {
            Some(_) => Err(self.uploading()),
            None => self.claim_alone(header),
        }
    }

    /// As [`Disk::claim_to_serve`], also of a disk in upload.
    pub(crate) fn claim_alone(&self, header: &HeaderPayload) -> Result<LayerFile, DiskError> {
        self.check_identity(header)?;
        let top = header.top().ok_or_else(|| self.no_layer())?;
        claim_data(self.name(), &self.layer_paths(top).data)
    }

    /// As [`Disk::claim`] for a snapshot or an image that is only read, together with others who do:
    /// none of its layers is changed or taken away meanwhile.
    pub(crate) fn claim_to_read(&self, header: &HeaderPayload) -> Result<LayerFile, DiskError> {
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
    pub(crate) fn claim_to_look(&self, header: &HeaderPayload) -> Result<LayerFile, DiskError> {
        self.check_identity(header)?;
        let top = header.top().ok_or_else(|| self.no_layer())?;
        let path = self.layer_paths(top).data;
        let data = LayerFile::open(&path)
            .or_else(|error| match error.kind() {
                std::io::ErrorKind::ReadOnlyFilesystem => LayerFile::open_to_read(&path),
                _ => Err(error),
            })
            .map_err(PipelineError::from)?;
        let claim = claim_as(
            FlockOperation::NonBlockingLockExclusive,
            self.name(),
            (data, &path),
        )?;
        match self.awaited_by() {
            Some(_) => Err(self.is_awaited()),
            None => Ok(claim),
        }
    }

    pub(crate) fn check_identity(&self, claims: &HeaderPayload) -> Result<(), DiskError> {
        if claims.disk == self.record.id {
            return Ok(());
        }
        Err(DiskError::OtherDisk {
            name: self.record.name.clone(),
            path: self.record.directory.clone(),
            found: claims.disk,
        })
    }

    /// That it is not whole yet.
    pub(crate) fn uploading(&self) -> DiskError {
        DiskError::Uploading {
            name: self.name().into(),
        }
    }

    /// That somebody has claimed it.
    pub(crate) fn in_use(&self) -> DiskError {
        let claimed = header_claims(self.directory())
            .ok()
            .and_then(|header| Some(self.layer_paths(header.top()?).data));
        DiskError::InUse {
            name: self.name().into(),
            path: claimed.unwrap_or_else(|| self.directory().into()),
        }
    }

    /// A header that was read has a layer; this keeps the claim out of the callers.
    pub(crate) fn no_layer(&self) -> DiskError {
        EnvelopeError::Malformed {
            path: self.directory().join(HEADER),
            reason: "it has no layer".into(),
        }
        .into()
    }
}

/// How long the lock of a process that lives is waited for: as long as a look at a disk takes.
const OF_THE_LIVING: Duration = Duration::from_millis(200);

/// How long the lock of a process that is dead is waited for: until the kernel lets go of its files.
const OF_THE_DEAD: Duration = Duration::from_secs(10);

/// Opens and exclusively locks a layer's data file. `disk show` holds a shared lock for a moment to
/// see whether there is a lock, so a refusal counts only when it lasts.
pub(crate) fn claim_data(name: &str, path: &Path) -> Result<LayerFile, DiskError> {
    let data = LayerFile::open(path).map_err(PipelineError::from)?;
    claim_as(FlockOperation::NonBlockingLockExclusive, name, (data, path))
}

fn claim_as(
    lock: FlockOperation,
    name: &str,
    (data, path): (LayerFile, &Path),
) -> Result<LayerFile, DiskError> {
    let begun = Instant::now();
    loop {
        match flock(data.file(), lock) {
            Ok(()) => return Ok(data),
            Err(Errno::WOULDBLOCK) => {}
            Err(e) => return Err(DiskError::file("lock", path)(e.into())),
        }
        let waited = begun.elapsed();
        if waited >= OF_THE_DEAD || (waited >= OF_THE_LIVING && holder::lives(&data)) {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err(DiskError::InUse {
        name: name.into(),
        path: path.into(),
    })
}
