//! What is written beside its final place until it is whole.
//!
//! Who writes it holds a lock on it. A process that was killed holds none, and may have left plaintext: the next one
//! with the same place removes it.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::process::geteuid;
use uuid::Uuid;

use crate::resource::directory::parent_of;

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
pub(super) fn hold_directory(directory: &Path) -> Option<File> {
    let file = File::open(directory).ok()?;
    hold(&file);
    Some(file)
}

fn is_partial(name: &OsStr, prefix: &str) -> bool {
    let id = name.to_str().and_then(|name| name.strip_prefix(prefix));
    id.is_some_and(|id| Uuid::parse_str(id).is_ok())
}

/// Removes what nobody holds and this user has made. What cannot be removed is told.
fn remove_if_left(partial: &Path) {
    let no_link = OFlags::NOFOLLOW.bits() as i32;
    let Ok(file) = OpenOptions::new()
        .read(true)
        .custom_flags(no_link)
        .open(partial)
    else {
        return;
    };
    let Ok(metadata) = file.metadata() else {
        return;
    };
    let is_new = metadata
        .modified()
        .is_ok_and(|time| time.elapsed().is_ok_and(|age| age < NEW));
    if is_new || metadata.uid() != geteuid().as_raw() {
        return;
    }
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return;
    }
    let removed = match metadata.is_dir() {
        true => fs::remove_dir_all(partial),
        false => fs::remove_file(partial),
    };
    match removed {
        Ok(()) => log::info!("removed {}, which a killed process left", partial.display()),
        Err(e) => log::warn!("{} is left of a killed process: {e}", partial.display()),
    }
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
        File::open(&directory).unwrap().set_modified(old).unwrap();

        let file = File::open(&left).unwrap();
        hold(&file);
        let held = (file, hold_directory(&directory));
        let name = beside(&target);
        assert!(left.exists() && directory.exists(), "somebody writes them");
        drop(held);
        assert_ne!(beside(&target), name);
        assert!(!left.exists() && !directory.exists());
        assert!(kept.iter().all(|path| path.exists()));
    }
}
