//! What is written beside its final place until it is whole.
//!
//! Who writes it holds a lock on it. A process that was killed holds none, and may have left plaintext: the next one
//! with the same place removes it.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::process::geteuid;
use uuid::Uuid;

use crate::resource::directory::parent_of;
use crate::resource::directory_lock::{DirectoryLock, lock_directory};

/// Younger ones may be of a process that has not locked its own yet.
const NEW: Duration = Duration::from_secs(60);

/// A new name beside `path`. What a killed process left there for the same place is removed before.
pub(super) fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.partial-");
    for entry in fs::read_dir(parent_of(path))
        .into_iter()
        .flatten()
        .flatten()
    {
        if is_partial(&entry.file_name(), &prefix) {
            remove_if_left(&entry.path());
        }
    }
    path.with_file_name(format!("{prefix}{}", Uuid::new_v4()))
}

/// Marks a file that was just made as one that is being written, for as long as it is open. Where a file system has
/// no locks, nobody gets one to remove it either.
pub(super) fn hold(file: &File) {
    if let Err(error) = flock(file, FlockOperation::NonBlockingLockExclusive) {
        log::debug!("what is being written is not locked: {error}");
    }
}

/// The same of a directory, until the result is dropped.
pub(super) fn hold_directory(directory: &Path) -> Option<DirectoryLock> {
    let lock = lock_directory(directory);
    let lock =
        lock.inspect_err(|error| log::debug!("what is being written is not locked: {error}"));
    lock.ok().flatten()
}

fn is_partial(name: &OsStr, prefix: &str) -> bool {
    let id = name.to_str().and_then(|name| name.strip_prefix(prefix));
    id.is_some_and(|id| Uuid::parse_str(id).is_ok())
}

/// Removes what nobody holds and this user has made. What cannot be removed is told.
fn remove_if_left(partial: &Path) {
    let Ok(metadata) = partial.symlink_metadata() else {
        return;
    };
    if is_new(&metadata) || metadata.uid() != geteuid().as_raw() {
        return;
    }
    let removed = match metadata.is_dir() {
        true => match lock_directory(partial) {
            Ok(Some(lock)) => remove_directory(partial, lock),
            _ => return,
        },
        false => match locked(partial) {
            Some(_locked) => fs::remove_file(partial),
            None => return,
        },
    };
    match removed {
        Ok(()) => log::info!("removed {}, which a killed process left", partial.display()),
        Err(e) => log::warn!("{} is left of a killed process: {e}", partial.display()),
    }
}

fn is_new(metadata: &Metadata) -> bool {
    let modified = metadata.modified();
    modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < NEW))
}

/// A file that nobody holds. NFS gives a lock to who may write.
fn locked(path: &Path) -> Option<File> {
    let no_link = OFlags::NOFOLLOW.bits() as i32;
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(no_link);
    let file = options.open(path).ok()?;
    let lock = flock(&file, FlockOperation::NonBlockingLockExclusive);
    lock.is_ok().then_some(file)
}

fn remove_directory(directory: &Path, lock: DirectoryLock) -> io::Result<()> {
    lock.empty()?;
    lock.remove_directory(directory)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn only_what_nobody_holds_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("disk.raw");
        let old = SystemTime::now() - 2 * NEW;
        let make = |name: &str, time| {
            let path = dir.path().join(name);
            let file = File::create(&path).unwrap();
            file.set_modified(time).unwrap();
            path
        };
        let id = Uuid::nil();
        let left = make(&format!(".disk.raw.partial-{id}"), old);
        let kept = [
            make(
                &format!(".disk.raw.partial-{}", Uuid::max()),
                SystemTime::now(),
            ),
            make(&format!(".other.partial-{id}"), old),
            make(".disk.raw.partial-notes", old),
        ];
        let directory = dir
            .path()
            .join(format!(".disk.raw.partial-{}", Uuid::from_u128(1)));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("image"), "plaintext").unwrap();
        // As it is some time after somebody locked it, or gave it up.
        let age = || File::open(&directory).unwrap().set_modified(old).unwrap();

        let file = File::open(&left).unwrap();
        hold(&file);
        let held = (file, hold_directory(&directory).unwrap());
        age();
        let name = beside(&target);
        assert!(left.exists() && directory.exists(), "somebody writes them");
        drop(held);
        age();
        assert_ne!(beside(&target), name);
        assert!(!left.exists() && !directory.exists());
        assert!(kept.iter().all(|path| path.exists()));
    }

    /// Somebody else may put a link there once it is locked.
    #[test]
    fn what_a_link_leads_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let [partial, renamed, other] =
            ["partial", "renamed", "other"].map(|name| dir.path().join(name));
        for directory in [&partial, &other] {
            fs::create_dir_all(directory.join("below")).unwrap();
            fs::write(directory.join("below/image"), "plaintext").unwrap();
            fs::write(directory.join("image"), "plaintext").unwrap();
        }
        std::os::unix::fs::symlink(&other, partial.join("link")).unwrap();
        let lock = lock_directory(&partial).unwrap().unwrap();
        fs::rename(&partial, &renamed).unwrap();
        std::os::unix::fs::symlink(&other, &partial).unwrap();
        remove_directory(&partial, lock).unwrap_err();
        assert!(other.join("image").exists() && other.join("below/image").exists());
        assert_eq!(fs::read_dir(&renamed).unwrap().count(), 0);
    }
}
