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
use crate::resource::disk::Disk;
use crate::resource::erase::remove_files;
use crate::resource::error::DiskError;
use crate::resource::extents::next_extent;
use crate::transfer::partial;
use installation::Installation;
use installation::files::{private_dir, rename_new, sync_dir, try_rename_new};
use volume::set_length;

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
    let file = disk.header_file()?;
    let claim = disk.claim()?;
    disk.settle(installation, &claim, runtime_dir)?;
    // From here on nobody re-wraps it either: the header is copied as it is.
    let lock = file.lock()?;
    let header = lock.read()?;
    let claims = header.claims();
    let target = Target::create(to)?;
    let paths = claims.layers.iter().map(|layer| {
        let (from, to) = (
            disk.layer_paths(layer),
            layer_paths(&target.directory, layer),
        );
        [(from.data, to.data), (from.map, to.map)]
    });
    let mut progress = started(claims.size);
    for (from, to) in paths.flatten() {
        copy_sparse(&from, &to, cancel, &mut progress)?;
    }
    // Last: without it a copy is nothing.
    let header_path = disk.directory().join(HEADER);
    copy_sparse(&header_path, &target.directory.join(HEADER), cancel, |_| {})?;
    drop((lock, claim));
    target.finish(to)
}

/// The copy in the making, under another name; removed with what is in it unless it is finished.
struct Target {
    directory: PathBuf,
    /// That the directory is of a process that lives.
    _held: Option<File>,
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
        let this = Self {
            directory,
            _held: held,
        };
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
            && let Err(error) = remove_files(&self.directory)
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
