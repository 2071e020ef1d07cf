//! Ending a failed sync.
//!
//! # Order of steps of a repair
//!
//! The disk is claimed, its header authentic, and the rest of the check has found no damage.
//!
//! 1. Every block that the current map calls data is read from storage. From then on the header is locked.
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

use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::open::{layer_map, lower_layers};
use crate::resource::session::{Unflushed, ended};
use installation::Installation;
use installation::envelope::{HeaderFile, HeaderPayload, LayerRecord};
use keys::units::BLOCK_SIZE;
use volume::store::LayerFile;
use volume::{Content, RuntimeMap, Volume, VolumeError};

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

impl Disk {
    /// Ends a failed sync; see the module. How many bytes were read.
    ///
    /// # Errors
    /// [`DiskError`]; the disk is marked as before then.
    pub(crate) fn repair_sync(
        &self,
        installation: &Installation,
        file: &HeaderFile,
        claim: &LayerFile,
        runtime_dir: &Path,
    ) -> Result<u64, DiskError> {
        let found = file.read()?;
        let left = self.left(found.claims(), runtime_dir, Unflushed::Needed)?;
        let read = self.read_all(found.claims(), left.map().as_ref())?;
        let mut lock = file.lock()?;
        let (mut header, dek) = self.unlock(installation, lock.read()?)?;
        self.check_claim(&header, claim)?;
        let left = self.left(&header, runtime_dir, Unflushed::Needed)?;
        let failed = self.failed_sync(&header, &left)?;
        let cache = left.cache()?;
        let runtime = left.map();
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
        synced.inspect_err(|error| self.keep_failed_sync(installation, &mut lock, error))?;
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
        let path = paths(top).data;
        let fail = DiskError::file("read", &path);
        let data = OpenOptions::new().read(true).open(&path).map_err(&fail)?;
        // What the page cache has proves nothing of what is stored.
        fadvise(&data, 0, None, Advice::DontNeed).map_err(|e| fail(e.into()))?;
        let (mut buffer, mut read) = (vec![0; CHUNK], 0);
        let (mut at, blocks) = (0, volume.map().blocks());
        while at < blocks {
            let run = volume.map().run_anywhere(at, blocks - at)?;
            let mut end = at + run.blocks;
            if run.what == Content::Data {
                end = end.min(at + CHUNK as u64 / BLOCK_SIZE);
                // At most `CHUNK`.
                let chunk = &mut buffer[..((end - at) * BLOCK_SIZE) as usize];
                data.read_exact_at(chunk, at * BLOCK_SIZE).map_err(&fail)?;
                read += chunk.len() as u64;
            }
            at = end;
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
    use installation::envelope::SyncedFile;

    use super::*;
    use crate::resource::disk::claim_data;
    use crate::resource::session::tests::attached;

    /// Only the runtime map has the mark, and the repair ends before it is done, by what is no sync.
    #[test]
    fn a_repair_that_ends_early_leaves_the_mark() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let installation = Installation::open(dir.path().join("state")).unwrap();
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
            disk.repair_sync(&installation, &file, &claim, runtime.path())
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
