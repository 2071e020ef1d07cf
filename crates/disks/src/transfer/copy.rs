//! Copying a disk as it is: ciphertext, map and header, to be opened elsewhere by whoever has access to
//! its key. No key is needed to copy a disk that was detached in order.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{copy_file_range, ioctl_ficlone};
use rustix::io::Errno;

use crate::import::Cancel;
use crate::resource::directory::{HEADER, layer_paths, parent_of};
use crate::resource::directory_lock::DirectoryLock;
use crate::resource::disk::{Disk, hold_data};
use crate::resource::erase::remove_files;
use crate::resource::error::DiskError;
use crate::resource::extents::next_extent;
use crate::transfer::partial;
use installation::Installation;
use installation::envelope::HeaderPayload;
use installation::files::{private_dir, rename_new, sync_dir, try_rename_new};
use volume::set_length;
use volume::store::LayerFile;

/// Bytes that are copied between two looks at signals.
const CHUNK: usize = 16 << 20;
/// Bytes of a buffer, where the kernel does not copy by itself.
const BUFFER: usize = 1 << 20;

/// Copies an unattached disk into the new directory `to`: shared blocks where the file system has
/// reflinks, else data only, so that holes stay holes. What a killed daemon had completed is made
/// durable first, so that the copy has it; that takes the disk's key. The copy appears as a whole; a failure or a signal leaves
/// nothing of it.
///
/// # Errors
/// [`DiskError`].
pub fn copy<P: FnMut(u64)>(
    installation: &Installation,
    name: &str,
    to: &Path,
    runtime_dir: &Path,
    cancel: &Cancel,
    started: impl FnOnce(u64) -> P,
) -> Result<(), DiskError> {
    if to.symlink_metadata().is_ok() {
        return Err(DiskError::OutputExists { path: to.into() });
    }
    let disk = Disk::find(installation, name)?;
    let claim = disk
        .claim()
        .map_err(|error| disk.in_use_where(installation, error))?;
    disk.settle(installation, &claim, runtime_dir)?;
    let header = disk.header_file()?.read()?.claims().clone();
    // From the bottom up; the top layer is claimed.
    let mut held = hold_lower(&disk, &header)?.into_iter();
    let target = Target::create(to)?;
    let mut progress = started(header.size);
    for layer in &header.layers {
        let held = held.next();
        let (from, to) = (
            disk.layer_paths(layer),
            layer_paths(&target.directory, layer),
        );
        copy_sparse(&from.map, &to.map, cancel, |_| {})?;
        copy_sparse(&from.data, &to.data, cancel, &mut progress)?;
        drop(held);
    }
    copy_header(&disk, &header, &target, cancel)?;
    drop(claim);
    target.finish(to)
}

/// Keeps merges from the layers beneath the top, into which they write though these are frozen: a map that is copied
/// would call blocks data that the data file had not when that was copied. Each is let go of when it is copied.
fn hold_lower(disk: &Disk, header: &HeaderPayload) -> Result<Vec<LayerFile>, DiskError> {
    let (_, lower) = header.layers.split_last().ok_or_else(|| disk.no_layer())?;
    let hold = |layer| hold_data(disk.name(), &disk.layer_paths(layer).data);
    lower.iter().map(hold).collect()
}

/// Copies the header last, since without it a copy is nothing, and locks it for no longer than that takes: it may be
/// looked at and wrapped anew while the layers are copied. These stay what they are, of a disk that is claimed.
fn copy_header(
    disk: &Disk,
    header: &HeaderPayload,
    target: &Target,
    cancel: &Cancel,
) -> Result<(), DiskError> {
    let file = disk.header_file()?;
    let lock = file.lock()?;
    let now = lock.read()?;
    let layers = |header: &HeaderPayload| header.layers.iter().map(|l| l.id).collect::<Vec<_>>();
    if now.claims().size != header.size || layers(now.claims()) != layers(header) {
        drop(lock);
        return Err(disk.in_use());
    }
    let path = disk.directory().join(HEADER);
    copy_sparse(&path, &target.directory.join(HEADER), cancel, |_| {})
}

/// The copy in the making, under another name; removed with what is in it unless it is finished.
struct Target {
    directory: PathBuf,
    /// That the directory is of a process that lives.
    held: Option<DirectoryLock>,
}

impl Target {
    fn create(to: &Path) -> Result<Self, DiskError> {
        private_dir(parent_of(to))?;
        let directory = partial::beside(to);
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(DiskError::file("create", to))?;
        let held = partial::hold_directory(&directory);
        let this = Self { directory, held };
        try_rename_new(&this.directory).map_err(DiskError::file("name", to))?;
        Ok(this)
    }

    fn finish(mut self, to: &Path) -> Result<(), DiskError> {
        sync_dir(&self.directory).map_err(DiskError::file("sync", to))?;
        rename_new(&self.directory, to).map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => DiskError::OutputExists { path: to.into() },
            _ => DiskError::file("name", to)(e),
        })?;
        self.directory = PathBuf::new();
        let parent = parent_of(to);
        sync_dir(parent).map_err(DiskError::file("sync", parent))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.directory.as_os_str().is_empty()
            && let Err(error) = remove_files(&self.directory, self.held.take())
        {
            log::warn!("an unfinished copy is left: {error}");
        }
    }
}

/// Copies a file with its holes and syncs it. `progress` is told how far in the file it is.
fn copy_sparse(
    from: &Path,
    to: &Path,
    cancel: &Cancel,
    mut progress: impl FnMut(u64),
) -> Result<(), DiskError> {
    let (read, write) = (DiskError::file("copy", from), DiskError::file("write", to));
    let source = File::open(from).map_err(&read)?;
    let target = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(&write)?;
    let len = source.metadata().map_err(&read)?.len();
    if ioctl_ficlone(&target, &source).is_err() {
        set_length(&target, to, len)?;
        let mut at = 0;
        while let Some(extent) = next_extent(&source, at, len).map_err(&read)? {
            at = extent.start;
            while at < extent.end {
                cancel.check()?;
                let most = usize::try_from(extent.end - at).map_or(CHUNK, |rest| rest.min(CHUNK));
                at += copy_range(&source, &target, at, most).map_err(&write)?;
                progress(at);
            }
        }
    }
    target.sync_all().map_err(&write)?;
    progress(len);
    Ok(())
}

/// Copies up to `most` bytes; how many.
fn copy_range(from: &File, to: &File, at: u64, most: usize) -> std::io::Result<u64> {
    let (mut read_at, mut write_at) = (at, at);
    match copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), most) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(copied) => Ok(copied as u64),
        // Between some file systems the kernel does not copy.
        Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            let mut buffer = vec![0; most.min(BUFFER)];
            from.read_exact_at(&mut buffer, at)?;
            to.write_all_at(&buffer, at)?;
            Ok(buffer.len() as u64)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::layers::{LayerOp, SnapshotRequest, Unattached};
    use crate::resource::directory::header_claims;
    use crate::resource::disk::claim_data;
    use crate::resource::session::tests::attached;
    use installation::envelope::ResourceKind;

    /// A disk "d" of two layers; where the data of the lower one is.
    fn layered(installation: &Installation, runtime: &Path) -> (Disk, PathBuf) {
        let disk = attached(installation, runtime);
        let claim = disk.claim().unwrap();
        let mut user = Unattached::settled(installation, &disk, claim, runtime).unwrap();
        let snapshot = LayerOp::CreateSnapshot(SnapshotRequest {
            kind: ResourceKind::Snapshot,
            name: "s".into(),
            incremental: false,
            data_dir: None,
        });
        snapshot.apply(installation, &disk, &mut user).unwrap();
        let header = header_claims(disk.directory()).unwrap();
        assert_eq!(header.layers.len(), 2);
        let lower = disk.layer_paths(&header.layers[0]).data;
        (disk, lower)
    }

    #[test]
    fn a_disk_is_wrapped_anew_and_not_merged_while_it_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let installation = Installation::open(dir.path().join("state")).unwrap();
        let (disk, lower) = layered(&installation, runtime.path());
        let to = dir.path().join("copy");
        let begun = |_: u64| {
            let merged = claim_data("d", &lower);
            assert!(matches!(merged, Err(DiskError::InUse { .. })));
            let file = disk.header_file().unwrap();
            let mut lock = file.lock().unwrap();
            let (mut header, dek) = disk.unlock(&installation, lock.read().unwrap()).unwrap();
            header.generation = 77;
            lock.write_both(&header, &dek).unwrap();
            |_: u64| {}
        };
        let cancel = Cancel::default();
        copy(&installation, "d", &to, runtime.path(), &cancel, begun).unwrap();
        // The copy has the header of its end.
        assert_eq!(header_claims(&to).unwrap().generation, 77);
        drop(claim_data("d", &lower).unwrap());
    }

    #[test]
    fn nothing_is_copied_into_which_something_is_merged() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
        let installation = Installation::open(dir.path().join("state")).unwrap();
        let (_disk, lower) = layered(&installation, runtime.path());
        let to = dir.path().join("copy");
        let merge = claim_data("s", &lower).unwrap();
        let cancel = Cancel::default();
        let copied = || {
            let begun = |_: u64| |_: u64| {};
            copy(&installation, "d", &to, runtime.path(), &cancel, begun)
        };
        assert!(matches!(copied(), Err(DiskError::InUse { .. })));
        // Neither the copy nor one in the making.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        drop(merge);
        copied().unwrap();
    }

    #[test]
    fn holes_stay_holes_and_data_is_the_same() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[7; 10_000], 1 << 20).unwrap();
        file.write_all_at(&[8; 512], (64 << 20) - 512).unwrap();
        let mut last = 0;
        copy_sparse(&from, &to, &Cancel::default(), |at| last = at).unwrap();
        assert_eq!(last, 64 << 20);
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        let cancel = Cancel::default();
        cancel.request();
        let stopped = copy_sparse(&from, &dir.path().join("other"), &cancel, |_| {});
        // With reflinks there is nothing to stop.
        assert!(stopped.is_err() || fs::metadata(dir.path().join("other")).unwrap().len() > 0);
    }
}
