//! A sync of a disk's files that failed: what is refused from then on, and how a repair ends it.
//!
//! The kernel may have dropped writes that it could not sync, and says so once. So the first failure is
//! noted twice, in the runtime map by the data plane that met it, and in the header by the process that
//! started that one; either of them counts. A command that meets one itself (a job of a disk that nobody has
//! attached, a resize, what makes durable what a daemon left) does both. What would make the disk's content last, or build on it, is
//! refused until a repair, and so is a copy of it in the clear; attaching is not, of which every flush fails.

use std::path::Path;

use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::open::geometry;
use crate::resource::session::{Left, Unflushed};
use installation::Installation;
use installation::envelope::{FailedSync, HeaderFile, HeaderLock, HeaderPayload, SyncedFile};
use volume::{self, RuntimeMap, VolumeError};

/// The file that a data plane said a sync has failed of.
pub fn synced_file(file: volume::FailedSync) -> SyncedFile {
    match file {
        volume::FailedSync::Data => SyncedFile::Data,
        volume::FailedSync::Map => SyncedFile::Map,
    }
}

/// As the runtime map has it; whatever file it was, nothing can be made durable.
pub fn as_in_runtime_map(failed: &FailedSync) -> volume::FailedSync {
    match failed.file {
        Some(SyncedFile::Map) => volume::FailedSync::Map,
        Some(SyncedFile::Data) | None => volume::FailedSync::Data,
    }
}

impl DiskError {
    /// The file of the top layer of which a sync failed, if that is the error, and what the kernel said.
    pub(crate) fn failed_sync(&self) -> Option<(volume::FailedSync, String)> {
        match self {
            Self::Volume(VolumeError::Sync { file, source, .. }) => {
                Some((*file, source.to_string()))
            }
            Self::Pipeline(error) => Some((error.failed_sync()?, error.to_string())),
            _ => None,
        }
    }
}

impl Disk {
    /// The sync of the disk's files that failed, by its header or by what its last user left.
    ///
    /// # Errors
    /// [`DiskError::Volume`] when the runtime map cannot be read.
    pub fn failed_sync(
        &self,
        header: &HeaderPayload,
        left: &Left,
    ) -> Result<Option<FailedSync>, DiskError> {
        let noted = header.failed_sync.clone();
        match (noted, left, header.top()) {
            (None, Left::Map(map), Some(top)) => {
                let why = "it was seen by a process that died";
                let failed = map.failed_sync()?;
                Ok(failed.map(|file| FailedSync::new(top.id, Some(synced_file(file)), why)))
            }
            (noted, ..) => Ok(noted),
        }
    }

    /// Refuses a disk of whose files a sync failed, as its header says.
    ///
    /// # Errors
    /// [`DiskError::SyncFailed`].
    pub(crate) fn refuse_failed_sync(&self, header: &HeaderPayload) -> Result<(), DiskError> {
        match &header.failed_sync {
            None => Ok(()),
            Some(failed) => Err(self.sync_failed(failed.clone())),
        }
    }

    /// As `Disk::refuse_failed_sync` for a claimed disk, or as what its last user left says.
    ///
    /// # Errors
    /// As `Disk::refuse_failed_sync` and [`Disk::left`].
    pub fn refuse_unsynced(
        &self,
        header: &HeaderPayload,
        runtime_dir: &Path,
    ) -> Result<(), DiskError> {
        let left = self.left(header, runtime_dir, Unflushed::Needed)?;
        match self.failed_sync(header, &left)? {
            None => Ok(()),
            Some(failed) => Err(self.sync_failed(failed)),
        }
    }

    pub(crate) fn sync_failed(&self, failed: FailedSync) -> DiskError {
        DiskError::SyncFailed {
            name: self.name().into(),
            failed: Box::new(failed),
        }
    }

    /// Has the disk say that a sync failed, where that is what `result` failed for. Whoever calls it has
    /// no lock of the header.
    ///
    /// # Errors
    /// Those of `result`.
    pub(crate) fn keeping_failed_sync<T>(
        &self,
        installation: &Installation,
        result: Result<T, DiskError>,
    ) -> Result<T, DiskError> {
        result.inspect_err(|error| {
            if error.failed_sync().is_none() {
                return;
            }
            let file = self.header_file();
            match file.as_ref().map(HeaderFile::lock) {
                Ok(Ok(mut lock)) => self.keep_failed_sync(installation, &mut lock, error),
                Ok(Err(why)) => self.log_unsaid(why),
                Err(why) => self.log_unsaid(why),
            }
        })
    }

    /// As [`Disk::keeping_failed_sync`] under the header's lock. What the disk says already stays. The
    /// runtime map comes first, since whoever serves the disk looks there, and since it takes the word
    /// where the header, which is on the same storage as what failed, does not.
    pub(crate) fn keep_failed_sync(
        &self,
        installation: &Installation,
        lock: &mut HeaderLock<'_>,
        error: &DiskError,
    ) {
        let Some((file, why)) = error.failed_sync() else {
            return;
        };
        let mut keep = || {
            let found = lock.read()?;
            self.keep_in_runtime_map(found.claims(), file)?;
            if found.claims().failed_sync.is_some() {
                return Ok(());
            }
            let (mut header, dek) = self.unlock(installation, found)?;
            let top = header.top().ok_or_else(|| self.no_layer())?.id;
            let file = Some(synced_file(file));
            header.failed_sync = Some(FailedSync::new(top, file, &why));
            Ok::<_, DiskError>(lock.write_both(&header, &dek)?)
        };
        if let Err(error) = keep() {
            self.log_unsaid(error);
        }
    }

    fn keep_in_runtime_map(
        &self,
        header: &HeaderPayload,
        file: volume::FailedSync,
    ) -> Result<(), DiskError> {
        let (Some(session), Some(top)) = (&header.session, header.top()) else {
            return Ok(());
        };
        let geometry = geometry(header, top)?;
        let found = RuntimeMap::find(session.runtime_map(), &geometry, header.attach)?;
        match found {
            Some(map) if map.failed_sync()?.is_none() => Ok(map.note_failed_sync(file)?),
            Some(_) | None => Ok(()),
        }
    }

    fn log_unsaid(&self, why: impl std::fmt::Display) {
        let name = self.name();
        log::error!("the disk {name} does not say that a sync of its files failed: {why}");
    }
}
