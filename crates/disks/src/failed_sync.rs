//! A sync of a disk's files that failed: what is refused from then on, and how a repair ends it.
//!
//! The kernel may have dropped writes that it could not sync, and says so once. So the first failure is
//! noted twice, in the runtime map by the data plane that met it, and in the header by the process that
//! started that one; either of them counts. A command that meets one itself (a job of a disk that nobody has
//! attached, a resize, what makes durable what a daemon left) does both. What would make the disk's content last, or build on it, is
//! refused until a repair, and so is a copy of it in the clear; attaching is not, of which every flush fails.
//!
//! # Order of steps of a repair
//!
//! The disk is claimed, its header locked and authentic, and the rest of the check has found no damage.
//!
//! 1. Every block that the current map calls data is read from storage.
//! 2. Where only the runtime map has the mark, the header gets it too, in both copies.
//! 3. The runtime map says that it was checked, so that its next flush writes all of the map anew; then the
//!    data is synced, the map written, and synced. Without a runtime map both files are synced. A sync
//!    that fails is noted as the first one was.
//! 4. The header loses the mark, and the session with it, in both copies; then the runtime map goes.
//!
//! A crash before 4 leaves the mark in the runtime map or in the header, so that the repair is to be made again.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Advice, fadvise};

use super::session::{Left, Unflushed, ended};
use super::{Disk, DiskError, geometry, layer_map, lower_layers};
use installation::Installation;
use installation::envelope::{
    FailedSync, HeaderFile, HeaderLock, HeaderPayload, LayerRecord, SyncedFile,
};
use keys::units::BLOCK_SIZE;
use volume::store::LayerFile;
use volume::{self, Content, RuntimeMap, Volume, VolumeError};

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

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
    fn failed_sync(&self) -> Option<(volume::FailedSync, String)> {
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
    pub(super) fn refuse_failed_sync(&self, header: &HeaderPayload) -> Result<(), DiskError> {
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

    pub(super) fn sync_failed(&self, failed: FailedSync) -> DiskError {
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
    pub(super) fn keeping_failed_sync<T>(
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
    pub(super) fn keep_failed_sync(
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

    /// Ends a failed sync; see the module. How many bytes were read.
    ///
    /// # Errors
    /// [`DiskError`]; the disk is marked as before then.
    pub(super) fn repair_sync(
        &self,
        installation: &Installation,
        lock: &mut HeaderLock<'_>,
        claim: &LayerFile,
        runtime_dir: &Path,
    ) -> Result<u64, DiskError> {
        let (mut header, dek) = self.unlock(installation, lock.read()?)?;
        let left = self.left(&header, runtime_dir, Unflushed::Needed)?;
        let failed = self.failed_sync(&header, &left)?;
        let cache = left.cache()?;
        let runtime = left.map();
        let read = self.read_all(&header, runtime.as_ref())?;
        if header.failed_sync.is_none() && failed.is_some() {
            header.failed_sync = failed;
            lock.write_both(&header, &dek)?;
        }
        let synced = match &runtime {
            Some(runtime) => {
                runtime.forget_failed_sync()?;
                self.flush_left(&header, claim, runtime)
            }
            None => self.sync_top(&header),
        };
        synced.inspect_err(|error| self.keep_failed_sync(installation, lock, error))?;
        let session = header.session.take();
        ended(&mut header, cache);
        header.failed_sync = None;
        lock.write_both(&header, &dek)?;
        self.remove_maps(session.as_ref(), runtime_dir);
        Ok(read)
    }

    /// Reads every block that the top layer has, from storage.
    fn read_all(
        &self,
        header: &HeaderPayload,
        runtime: Option<&RuntimeMap>,
    ) -> Result<u64, DiskError> {
        let top = header.top().ok_or_else(|| self.no_layer())?;
        let paths = |layer: &LayerRecord| self.layer_paths(layer);
        let map = layer_map(header, top, &paths(top))?;
        let lower = lower_layers(header, paths)?;
        let volume = match runtime {
            Some(runtime) => Volume::open_runtime(map, lower, runtime)?,
            None => Volume::open_private(map, lower)?,
        };
        volume.map().load_all()?;
        let path = paths(top).data;
        let fail = DiskError::file("read", &path);
        let data = OpenOptions::new().read(true).open(&path).map_err(&fail)?;
        // What the page cache has proves nothing of what is stored.
        fadvise(&data, 0, None, Advice::DontNeed).map_err(|e| fail(e.into()))?;
        let (mut buffer, mut read) = (vec![0; CHUNK], 0);
        let (mut at, blocks) = (0, volume.map().blocks());
        while at < blocks {
            let most = (blocks - at).min(CHUNK as u64 / BLOCK_SIZE);
            let run = volume.map().run(at, most);
            if run.what == Content::Data {
                // At most `CHUNK`.
                let chunk = &mut buffer[..(run.blocks * BLOCK_SIZE) as usize];
                data.read_exact_at(chunk, at * BLOCK_SIZE).map_err(&fail)?;
                read += chunk.len() as u64;
            }
            at += run.blocks;
        }
        Ok(read)
    }

    fn sync_top(&self, header: &HeaderPayload) -> Result<(), DiskError> {
        let top = header.top().ok_or_else(|| self.no_layer())?;
        let paths = self.layer_paths(top);
        for (which, path) in [
            (volume::FailedSync::Data, &paths.data),
            (volume::FailedSync::Map, &paths.map),
        ] {
            let file = OpenOptions::new().read(true).write(true).open(path);
            let file = file.map_err(DiskError::file("open", path))?;
            file.sync_all().map_err(VolumeError::sync(which, path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::claim_data;
    use super::super::session::tests::attached;
    use super::*;

    /// Only the runtime map has the mark, and the repair ends before it is done, by what is no sync.
    #[test]
    fn a_repair_that_ends_early_leaves_the_mark() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let installation = Installation::open(&dir.path().join("state")).unwrap();
        let disk = attached(&installation, runtime.path());
        let read = || disk.header_file().unwrap().read().unwrap().claims().clone();
        let left = || disk.left(&read(), runtime.path(), Unflushed::Needed);
        let map = left().unwrap().map().unwrap();
        map.note_failed_sync(volume::FailedSync::Data).unwrap();
        assert!(read().failed_sync.is_none());

        let path = disk.layer_paths(read().top().unwrap()).data;
        let claim = claim_data("d", &path).unwrap();
        let data = OpenOptions::new().write(true).open(&path).unwrap();
        let repair = || {
            let file = disk.header_file().unwrap();
            let mut lock = file.lock().unwrap();
            disk.repair_sync(&installation, &mut lock, &claim, runtime.path())
        };
        let len = data.metadata().unwrap().len();
        data.set_len(len / 2).unwrap();
        let error = repair().unwrap_err();
        assert!(error.failed_sync().is_none(), "{error}");
        let failed = disk.failed_sync(&read(), &left().unwrap()).unwrap();
        let file = failed.expect("nobody knows of the failed sync").file;
        assert_eq!(file, Some(SyncedFile::Data));

        data.set_len(len).unwrap();
        repair().unwrap();
        assert!(read().failed_sync.is_none() && read().session.is_none());
    }
}
