//! Streaming a disk's plaintext out, for those who hold the key.

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::import::Cancel;
use crate::resource::directory::parent_of;
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::key_watch::KeyWatch;
use crate::resource::offline::open_existing;
use crate::resource::session::Unflushed;
use crate::transfer::partial;
use crate::transfer::patient::Patient;
use crate::transfer::stream::{Output, stream};
use crate::transfer::write_back::WriteBack;
use installation::Installation;
use installation::envelope::{Header, ResourceKind};
use installation::files::{rename_new, sync_dir, try_rename_new};
use volume::pipeline::DiskIo;
use volume::set_length;

/// Where the plaintext goes.
#[derive(Debug)]
pub enum Plaintext {
    /// Standard output, unless it is a terminal.
    Stdout,
    /// A file that does not exist yet, or a device or pipe that does.
    Path(PathBuf),
}

/// Writes the plaintext of an unattached disk, a snapshot or an image. `runtime_dir` is where the maps of attached disks
/// are, which may hold what a killed daemon had completed and not flushed.
///
/// A new file is sparse where the disk has nothing, has mode 0600 and gets its name when it is
/// complete; a failure or a signal leaves none. What goes to a file or a block device is durable in the end. It ends within seconds when a vault refuses a key of it, also
/// while nobody takes what it writes.
///
/// # Errors
/// [`DiskError`].
pub fn decrypt<P: FnMut(u64)>(
    installation: &Installation,
    (kind, name): (ResourceKind, &str),
    to: &Plaintext,
    runtime_dir: &Path,
    cancel: &Cancel,
    started: impl FnOnce(u64) -> P,
) -> Result<(), DiskError> {
    let mut sink = Sink::open(to)?;
    let disk = Disk::of_kind(installation, kind, name)?;
    let (source, header, keys) = open_to_read(installation, &disk, runtime_dir)?;
    let size = header.size;
    sink.reserve(size)?;
    let cancel = keys.stopping(cancel);
    keys.judged(stream(source, size, &mut sink, &cancel, started(size)))?;
    sink.finish()
}

/// Opens an unattached disk, a snapshot or an image for reading; its header too, and a watch over its keys. Snapshots
/// and images may be read by several at once. A disk is refused of which something may be lost that was written and not
/// flushed: it would be read as garbage.
pub(super) fn open_to_read(
    installation: &Installation,
    disk: &Disk,
    runtime_dir: &Path,
) -> Result<(DiskIo, Header, KeyWatch), DiskError> {
    let claim = match disk.kind() {
        ResourceKind::Disk => disk.claim()?,
        ResourceKind::Snapshot | ResourceKind::Image => disk.claim_to_read()?,
    };
    // Only now: it may have been attached and detached until it was claimed.
    let found = disk.header_file()?.read()?;
    disk.refuse_unsynced(found.claims(), runtime_dir)?;
    if let Some(runtime) = disk
        .left(found.claims(), runtime_dir, Unflushed::Needed)?
        .map()
    {
        disk.refuse_lost(found.claims(), &runtime)?;
    }
    let (header, deks) = disk.unlock_all(installation, found)?;
    let source = open_existing(disk, claim, &header, &deks, runtime_dir)?;
    let keys = KeyWatch::of(installation, disk)?;
    Ok((source, header, keys))
}

/// An output, random access or sequential.
enum Sink {
    /// A regular file under a temporary name; holes stay holes.
    New {
        file: WriteBack,
        partial: PathBuf,
        path: PathBuf,
    },
    /// A pipe, a device, or standard output: every byte is written in order.
    Stream(Patient),
}

impl Sink {
    fn open(to: &Plaintext) -> Result<Self, DiskError> {
        let path = match to {
            Plaintext::Stdout => {
                let path = PathBuf::from("standard output");
                let stdout = io::stdout();
                if stdout.is_terminal() {
                    return Err(DiskError::Terminal);
                }
                let duplicate = rustix::io::fcntl_dupfd_cloexec(&stdout, 3)
                    .map_err(|e| DiskError::file("write to", &path)(e.into()))?;
                return Ok(Self::Stream(Patient::new(duplicate.into(), path)?));
            }
            Plaintext::Path(path) => path.clone(),
        };
        match fs::metadata(&path) {
            Ok(there) if there.is_file() => Err(DiskError::OutputExists { path }),
            Ok(_) => {
                let file = OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .map_err(DiskError::file("open", &path))?;
                if file.is_terminal() {
                    return Err(DiskError::Terminal);
                }
                Ok(Self::Stream(Patient::new(file, path)?))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Self::create(path),
            Err(e) => Err(DiskError::file("inspect", &path)(e)),
        }
    }

    fn create(path: PathBuf) -> Result<Self, DiskError> {
        let partial = partial::beside(&path);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)
            .map_err(DiskError::file("create", &path))?;
        partial::hold(&file);
        let named = try_rename_new(&partial).map_err(DiskError::file("name", &path));
        let this = Self::New {
            file: WriteBack::new(file),
            partial,
            path,
        };
        named.map(|()| this)
    }

    /// Makes a new file as long as the disk, which a file system may not have.
    fn reserve(&self, size: u64) -> Result<(), DiskError> {
        match self {
            Self::New { file, path, .. } => Ok(set_length(file.file(), path, size)?),
            Self::Stream(_) => Ok(()),
        }
    }

    /// Makes durable what was written, and gives a new file its name.
    fn finish(&mut self) -> Result<(), DiskError> {
        let (file, partial, path) = match self {
            Self::New {
                file,
                partial,
                path,
            } => (file, partial, path),
            Self::Stream(to) => return to.finish(),
        };
        file.file()
            .sync_all()
            .map_err(DiskError::file("write", path))?;
        rename_new(partial, path).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => DiskError::OutputExists { path: path.clone() },
            _ => DiskError::file("name", path)(e),
        })?;
        *partial = PathBuf::new();
        let parent = parent_of(path);
        sync_dir(parent).map_err(DiskError::file("sync", parent))
    }
}

impl Output for Sink {
    fn data(&mut self, offset: u64, plaintext: &[u8], cancel: &Cancel) -> Result<(), DiskError> {
        match self {
            Self::New { file, path, .. } => file
                .write_all_at(plaintext, offset)
                .map_err(DiskError::file("write", path)),
            Self::Stream(to) => to.write_all(plaintext, cancel),
        }
    }

    fn zeros(&mut self, mut count: u64, cancel: &Cancel) -> Result<(), DiskError> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        let Self::Stream(to) = self else {
            return Ok(());
        };
        while count > 0 {
            let length = usize::try_from(count).map_or(ZEROS.len(), |n| n.min(ZEROS.len()));
            to.write_all(&ZEROS[..length], cancel)?;
            count -= length as u64;
        }
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Self::New { partial, .. } = self
            && !partial.as_os_str().is_empty()
            && let Err(e) = fs::remove_file(&*partial)
        {
            log::error!("remove the plaintext in {}: {e}", partial.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use test_support::seccomp::with_failing_syncs;

    use super::*;

    #[test]
    fn a_file_whose_name_is_not_stored_is_not_called_complete() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("place");
        fs::create_dir(&place).unwrap();
        let write = |name: &str| {
            let path = place.join(name);
            let mut sink = Sink::create(path.clone()).unwrap();
            let cancel = Cancel::default();
            sink.data(0, &[1; 4096], &cancel).unwrap();
            (sink.finish(), fs::read(path).unwrap())
        };
        with_failing_syncs("place", |syncs| {
            assert!(write("one").0.is_ok());
            syncs.allow(0);
            let (failed, bytes) = write("two");
            assert_eq!(failed.unwrap_err().code(), "FileSystem");
            assert!(bytes == [1; 4096]);
        });
    }
}
