//! A disk, a snapshot or an image whose files are complete, and who may use its data.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::resource::directory::{HEADER, header_claims, layer_paths};
use crate::resource::error::DiskError;
use crate::resource::holder;
use crate::resource::layer_files::is_at;
use installation::catalog::DiskRecord;
use installation::envelope::{
    EnvelopeError, HeaderFile, HeaderLock, HeaderPayload, LayerRecord, ResourceKind, Session,
};
use volume::LayerPaths;
use volume::pipeline::PipelineError;
use volume::store::{LayerFile, StoreError};

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

    /// Where its header is.
    pub fn header_path(&self) -> PathBuf {
        self.directory().join(HEADER)
    }

    /// Its header file.
    ///
    /// # Errors
    /// [`DiskError::Envelope`].
    pub fn header_file(&self) -> Result<HeaderFile, DiskError> {
        Ok(HeaderFile::open(&self.header_path())?)
    }

    /// The files of one of its layers.
    pub fn layer_paths(&self, layer: &LayerRecord) -> LayerPaths {
        layer_paths(self.directory(), layer)
    }

    /// Claims the disk's data for the caller alone, for as long as the returned file, or a
    /// duplicate of it, is open. It is the data of what the header names as the top layer from then on:
    /// only whoever has it pushes another layer.
    ///
    /// # Errors
    /// [`DiskError::InUse`] when somebody has it, [`DiskError::Awaited`] when an attach waits for it,
    /// [`DiskError::OtherDisk`], [`DiskError::Uploading`].
    pub fn claim(&self) -> Result<LayerFile, DiskError> {
        self.unless_awaited(self.claim_to_serve()?)
    }

    /// As [`Disk::claim`] for an attach, whoever waits.
    ///
    /// # Errors
    /// [`DiskError::InUse`] when somebody has it, [`DiskError::OtherDisk`], [`DiskError::Uploading`].
    pub fn claim_to_serve(&self) -> Result<LayerFile, DiskError> {
        let refuse = |header: &HeaderPayload| match header.upload {
            Some(_) => Err(self.uploading()),
            None => Ok(()),
        };
        self.claim_top(ALONE, refuse, || {})
    }

    /// As [`Disk::claim_to_serve`], also of a disk in upload.
    pub(crate) fn claim_alone(&self) -> Result<LayerFile, DiskError> {
        self.claim_top(ALONE, |_| Ok(()), || {})
    }

    /// As [`Disk::claim`] for a snapshot or an image that is only read, together with others who do:
    /// none of its layers is changed or taken away meanwhile.
    pub(crate) fn claim_to_read(&self) -> Result<LayerFile, DiskError> {
        self.claim_top(FlockOperation::NonBlockingLockShared, |_| Ok(()), || {})
    }

    /// As [`Disk::claim`] for whoever has the lock of the header, which names no other layer before that goes.
    pub(crate) fn claim_under(&self, lock: &HeaderLock<'_>) -> Result<LayerFile, DiskError> {
        let header = lock.read()?;
        self.unless_awaited(self.lock_top(header.claims(), LayerFile::open, ALONE)?)
    }

    /// As [`Disk::claim_under`] of a disk that is not changed: its file system may be read-only.
    pub(crate) fn claim_to_look(&self, lock: &HeaderLock<'_>) -> Result<LayerFile, DiskError> {
        let open = |path: &Path| {
            LayerFile::open(path).or_else(|error| match error.kind() {
                std::io::ErrorKind::ReadOnlyFilesystem => LayerFile::open_to_read(path),
                _ => Err(error),
            })
        };
        let header = lock.read()?;
        self.unless_awaited(self.lock_top(header.claims(), open, ALONE)?)
    }

    /// Claims the data of the top layer, unless `refuse` finds in the header what forbids that. Every claim is
    /// made here, or under the header's lock.
    ///
    /// The header is read again when that file is locked. An attach that pushes a layer lets go of the one that
    /// was the top, which is just what somebody may wait for who has read the header before: the guest uses
    /// another layer by then.
    /// `found` is called before each attempt, for tests.
    fn claim_top(
        &self,
        lock: FlockOperation,
        refuse: impl Fn(&HeaderPayload) -> Result<(), DiskError>,
        mut found: impl FnMut(),
    ) -> Result<LayerFile, DiskError> {
        let file = self.header_file()?;
        let mut header = file.read()?;
        for _ in 0..TRIES {
            refuse(header.claims())?;
            found();
            let claim = self.lock_top(header.claims(), LayerFile::open, lock)?;
            header = file.read()?;
            if is_at(claim.file(), &self.top_data(header.claims())?) {
                return Ok(claim);
            }
        }
        Err(self.in_use())
    }

    /// Locks the data of that header's top layer. It is a claim only when the header still is the newest then.
    fn lock_top(
        &self,
        header: &HeaderPayload,
        open: impl FnOnce(&Path) -> Result<LayerFile, StoreError>,
        lock: FlockOperation,
    ) -> Result<LayerFile, DiskError> {
        self.check_identity(header)?;
        let path = self.top_data(header)?;
        let data = open(&path).map_err(PipelineError::from)?;
        let session = header.session.as_ref();
        let is_elsewhere = session.and_then(Session::is_of_this_host) == Some(false);
        claim_as(lock, self.name(), (data, &path), is_elsewhere)
    }

    /// It is to be found as whoever let go of it has left it.
    fn unless_awaited(&self, claim: LayerFile) -> Result<LayerFile, DiskError> {
        match self.awaited_by() {
            Some(_) => Err(self.is_awaited()),
            None => Ok(claim),
        }
    }

    /// Refuses a claim that is not of the header's top layer. What is made durable, read or changed by that header
    /// would be in the wrong file, and the disk in use by somebody else.
    ///
    /// # Errors
    /// [`DiskError::InUse`].
    pub(crate) fn check_claim(
        &self,
        header: &HeaderPayload,
        claim: &LayerFile,
    ) -> Result<(), DiskError> {
        let path = self.top_data(header)?;
        match is_at(claim.file(), &path) {
            true => Ok(()),
            false => Err(DiskError::InUse {
                name: self.name().into(),
                path,
            }),
        }
    }

    fn top_data(&self, header: &HeaderPayload) -> Result<PathBuf, DiskError> {
        let top = header.top().ok_or_else(|| self.no_layer())?;
        Ok(self.layer_paths(top).data)
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

/// The lock of whoever has a disk for itself.
const ALONE: FlockOperation = FlockOperation::NonBlockingLockExclusive;

/// How often a disk is claimed whose top layer is another one each time: somebody has it.
pub(crate) const TRIES: u32 = 5;

/// How long the lock of a process that lives is waited for: as long as a look at a disk takes.
const OF_THE_LIVING: Duration = Duration::from_millis(200);

/// How long the lock of a process that is dead is waited for: until the kernel lets go of its files.
const OF_THE_DEAD: Duration = Duration::from_secs(10);

/// Opens and exclusively locks a layer's data file. `disk show` holds a shared lock for a moment to
/// see whether there is a lock, so a refusal counts only when it lasts.
pub(crate) fn claim_data(name: &str, path: &Path) -> Result<LayerFile, DiskError> {
    let data = LayerFile::open(path).map_err(PipelineError::from)?;
    claim_as(ALONE, name, (data, path), false)
}

/// As [`claim_data`] of a frozen layer that is only read, together with others who do: nobody merges into it meanwhile.
pub(crate) fn hold_data(name: &str, path: &Path) -> Result<LayerFile, DiskError> {
    let data = LayerFile::open_to_read(path).map_err(PipelineError::from)?;
    let shared = FlockOperation::NonBlockingLockShared;
    claim_as(shared, name, (data, path), false)
}

/// Whether whoever has it lives is not to be seen from here when that is another host's attach.
fn claim_as(
    lock: FlockOperation,
    name: &str,
    (data, path): (LayerFile, &Path),
    is_elsewhere: bool,
) -> Result<LayerFile, DiskError> {
    let begun = Instant::now();
    loop {
        match flock(data.file(), lock) {
            Ok(()) => return Ok(data),
            Err(Errno::WOULDBLOCK) => {}
            Err(e) => return Err(DiskError::file("lock", path)(e.into())),
        }
        let waited = begun.elapsed();
        let may_live = || is_elsewhere || holder::lives(&data);
        if waited >= OF_THE_DEAD || (waited >= OF_THE_LIVING && may_live()) {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err(DiskError::InUse {
        name: name.into(),
        path: path.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{LayerOp, SnapshotRequest, Unattached};
    use crate::resource::offline::open_existing;
    use crate::resource::session::tests::attached;
    use installation::Installation;

    fn snapshot(name: &str) -> LayerOp {
        LayerOp::CreateSnapshot(SnapshotRequest {
            kind: ResourceKind::Snapshot,
            name: name.into(),
            incremental: false,
            data_dir: None,
        })
    }

    /// Whoever has the disk pushes a layer onto it when somebody else has read the header, and lets go of the one
    /// beneath.
    #[test]
    fn who_waits_for_a_disk_does_not_get_the_layer_that_was_its_top() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let installation = Installation::open(dir.path().join("state")).unwrap();
        let disk = attached(&installation, runtime.path());
        let claim = disk.claim().unwrap();
        let user = Unattached::settled(&installation, &disk, claim, runtime.path());
        let mut user = user.unwrap();
        for (number, lock) in [ALONE, FlockOperation::NonBlockingLockShared]
            .into_iter()
            .enumerate()
        {
            // The second snapshot needs another layer only if there is something in the top one.
            let op = match number {
                0 => snapshot("s"),
                _ => LayerOp::RotateDek { rate: None },
            };
            let (mut tries, before) = (0, top(&disk));
            let claimed = disk.claim_top(
                lock,
                |_| Ok(()),
                || {
                    tries += 1;
                    if tries == 1 {
                        op.apply(&installation, &disk, &mut user).unwrap();
                    }
                },
            );
            assert!(
                matches!(claimed, Err(DiskError::InUse { .. })),
                "{claimed:?}"
            );
            assert_eq!(tries, 2);
            assert_ne!(top(&disk), before);
        }
        drop(user);
        let claim = disk.claim().unwrap();
        let header = disk.header_file().unwrap().read().unwrap();
        disk.check_claim(header.claims(), &claim).unwrap();
    }

    fn top(disk: &Disk) -> LayerRecord {
        let header = disk.header_file().unwrap().read().unwrap();
        header.claims().top().unwrap().clone()
    }

    /// However somebody came to have it: with the claim of a layer beneath nothing is made durable, changed or read.
    #[test]
    fn the_claim_of_a_layer_beneath_is_none_of_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let installation = Installation::open(dir.path().join("state")).unwrap();
        let disk = attached(&installation, runtime.path());
        let beneath = disk.layer_paths(&top(&disk)).data;
        let user = disk.claim().unwrap();
        let user = Unattached::settled(&installation, &disk, user, runtime.path());
        let mut user = user.unwrap();
        let stale = || claim_data("d", &beneath).unwrap();
        snapshot("s")
            .apply(&installation, &disk, &mut user)
            .unwrap();
        drop(user);

        let settled = disk.settle(&installation, &stale(), runtime.path());
        assert!(matches!(settled, Err(DiskError::InUse { .. })));
        let found = disk.header_file().unwrap().read().unwrap();
        let (header, deks) = disk.unlock_all(&installation, found).unwrap();
        let opened = open_existing(&disk, stale(), &header, &deks, runtime.path());
        assert!(matches!(opened, Err(DiskError::InUse { .. })));
    }
}
