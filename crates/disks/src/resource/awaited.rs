//! Who waits for a disk that somebody else has: a file in its directory, which whoever waits has locked.
//!
//! An attach lets go of its disk while its rings rest if somebody waits (`attach --incoming`, for the migration of a guest).
//! The lock is what counts. A file that a killed process has left is nobody's, and whoever waits next takes it over. It
//! is a file of its own, since a lock of the header or of the data would be in the way of those who change the disk:
//! on NFS an `flock` is a lock of all bytes for every host.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::resource::directory::AWAITED;
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;

/// Whoever looks whether there is a lock has a shared one for a moment, so a refusal counts only when it lasts.
const TRIES: u32 = 20;
const LOOK: Duration = Duration::from_millis(10);
/// Bytes of the file at most.
const MAX_LEN: u64 = 4096;

/// An attach that waits for a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiter {
    /// The name of its host.
    pub host: String,
    /// Its process there.
    pub process: u32,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

/// Says that this process waits for a disk, for as long as it lives.
#[derive(Debug)]
pub struct Awaiting {
    file: File,
    path: PathBuf,
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        // Under the lock, so that nobody else's is removed.
        if is_named(&self.file, &self.path)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

impl Disk {
    /// Says that this process waits for the disk.
    ///
    /// # Errors
    /// [`DiskError::Awaited`] when another one does, or [`DiskError::File`].
    pub fn await_it(&self) -> Result<Awaiting, DiskError> {
        for _ in 0..TRIES {
            if let Some(awaiting) = self.try_await()? {
                return Ok(awaiting);
            }
            thread::sleep(LOOK);
        }
        Err(self.is_awaited())
    }

    /// The same; nothing when another one does right now.
    ///
    /// # Errors
    /// [`DiskError::File`].
    pub fn try_await(&self) -> Result<Option<Awaiting>, DiskError> {
        let path = self.directory().join(AWAITED);
        let Some(file) = lock(&path)? else {
            return Ok(None);
        };
        write_waiter(&file).map_err(DiskError::file("write", &path))?;
        Ok(Some(Awaiting { file, path }))
    }

    /// Who waits for it, if somebody does.
    pub fn awaited_by(&self) -> Option<Waiter> {
        waiter_for(self.directory())
    }

    /// That somebody waits for it.
    pub(crate) fn is_awaited(&self) -> DiskError {
        let waiter = self.awaited_by();
        DiskError::Awaited {
            name: self.name().into(),
            by: waiter.map_or("another process".into(), |waiter| {
                format!("process {} on {}", waiter.process, waiter.host)
            }),
        }
    }
}

/// Who waits for the disk of that directory.
pub(crate) fn waiter_for(directory: &Path) -> Option<Waiter> {
    let mut file = File::open(directory.join(AWAITED)).ok()?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => {}
        _ => return None,
    }
    let mut text = String::new();
    let read = Read::by_ref(&mut file)
        .take(MAX_LEN)
        .read_to_string(&mut text);
    let told = read.ok().and_then(|_| serde_json::from_str(&text).ok());
    // It says so right after it was locked.
    Some(told.unwrap_or_else(|| Waiter {
        host: "unknown".into(),
        process: 0,
        since: OffsetDateTime::UNIX_EPOCH,
    }))
}

/// Opens and locks the file, unless somebody else has it locked or has just removed it.
fn lock(path: &Path) -> Result<Option<File>, DiskError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    let file = options
        .truncate(false)
        .open(path)
        .map_err(DiskError::file("open", path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(is_named(&file, path).then_some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(DiskError::file("lock", path)(error.into())),
    }
}

/// Whether the file still has that name.
fn is_named(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(named)) = (file.metadata(), path.symlink_metadata()) else {
        return false;
    };
    (ours.dev(), ours.ino()) == (named.dev(), named.ino())
}

fn write_waiter(mut file: &File) -> io::Result<()> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let waiter = Waiter {
        host: host.trim().into(),
        process: std::process::id(),
        since: OffsetDateTime::now_utc(),
    };
    file.set_len(0)?;
    file.write_all(serde_json::to_string(&waiter)?.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_waits_at_a_time_and_a_file_that_was_left_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(AWAITED);
        assert_eq!(waiter_for(directory.path()), None);
        let file = lock(&path).unwrap().unwrap();
        write_waiter(&file).unwrap();
        assert!(lock(&path).unwrap().is_none());
        let waiter = waiter_for(directory.path()).unwrap();
        assert_eq!(waiter.process, std::process::id());
        // As a process that is killed leaves it.
        drop(file);
        assert!(path.exists());
        assert_eq!(waiter_for(directory.path()), None);
        let file = lock(&path).unwrap().unwrap();
        let removed = Awaiting {
            file: file.try_clone().unwrap(),
            path: path.clone(),
        };
        drop((removed, file));
        assert!(!path.exists());
    }

    #[test]
    fn a_lock_of_a_file_that_was_removed_counts_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(AWAITED);
        let old = lock(&path).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(!is_named(&old, &path));
        let new = lock(&path).unwrap().unwrap();
        drop(Awaiting {
            file: old,
            path: path.clone(),
        });
        assert!(path.exists() && is_named(&new, &path));
    }
}
