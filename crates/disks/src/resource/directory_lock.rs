//! The lock of a directory, which whoever makes or deletes what is in it has: a file in it, `lock`.
//!
//! A directory can be locked itself (`flock`), and then on one host only: NFS and file systems in user space keep that
//! from their server. Of a regular file every host of a cluster sees the lock. The file is there only while somebody has
//! it, so that a directory has what belongs to the disk and nothing else.
//!
//! 1. *Taken*: the directory is opened and locked itself, which is against processes of this host, also of earlier
//!    versions. Then the file is opened in it, made where it is not there, and locked. Then it is looked whether the file
//!    still has its name, and the directory still has its own: whoever gives the lock up removes the file, and may have
//!    renamed or removed the directory.
//! 2. *Given up*: the file is removed under its lock. Whoever is killed leaves it, and nobody has it locked then: the
//!    next one takes it over, and removes it.
//!
//! Where no file can be made, since the file system is full or read-only, the lock of the directory itself is all there
//! is: something has to be deleted when there is no room.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, flock, openat, unlinkat};
use rustix::io::Errno;

use crate::resource::directory::LOCK;

/// How long another command may have a directory, and how often that is looked for.
const PATIENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(5);

/// A directory that nobody else has, until this is dropped.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    directory: File,
    /// None where it could not be made.
    file: Option<File>,
}

/// Locks a directory; `None` when someone else holds its lock, or removed it meanwhile.
///
/// # Errors
/// What the system said; `NotFound` where there is no such directory.
pub(crate) fn lock_directory(path: &Path) -> io::Result<Option<DirectoryLock>> {
    let directory = File::open(path)?;
    let is_locked = match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => true,
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(error) if has_no_locks_of_directories(error) => false,
        Err(error) => return Err(error.into()),
    };
    let file = match lock_file(&directory) {
        Ok(None) => return Ok(None),
        Err(error) if is_locked && cannot_be_made(error) => {
            log::info!(
                "{} is locked on this host only, since no file can be made in it: {error}",
                path.display()
            );
            None
        }
        // Of a directory that another host has removed.
        Err(Errno::STALE) => return Err(io::ErrorKind::NotFound.into()),
        file => file?,
    };
    let lock = DirectoryLock { directory, file };
    // The lock counts only for the directory that still has the name.
    let (locked, named) = (lock.directory.metadata()?, fs::symlink_metadata(path));
    let same = named.is_ok_and(|n| (n.dev(), n.ino()) == (locked.dev(), locked.ino()));
    Ok(same.then_some(lock))
}

/// As [`lock_directory`]. A command that cleans up has it for a moment, though nothing is to be cleaned up by now.
///
/// # Errors
/// As [`lock_directory`].
pub(crate) fn lock_patiently(directory: &Path) -> io::Result<Option<DirectoryLock>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match lock_directory(directory)? {
            None if Instant::now() < deadline => thread::sleep(LOOK),
            lock => return Ok(lock),
        }
    }
}

impl DirectoryLock {
    /// Removes all that is in the directory that is locked, whatever has its name by now.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn empty(&self) -> io::Result<()> {
        remove_entries(&self.directory, Some(LOCK))
    }

    /// Removes the directory, of that path, in which nothing else is.
    ///
    /// # Errors
    /// What the system said; `DirectoryNotEmpty` when something else is in it.
    pub(crate) fn remove_directory(mut self, path: &Path) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.remove_file();
            match fs::remove_dir(path) {
                // On another host somebody looks whether anything is to be done here.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                    if Instant::now() >= deadline || !holds_what_passes(path)? {
                        return Err(error);
                    }
                    thread::sleep(LOOK);
                    self.file = lock_file(&self.directory).ok().flatten();
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                removed => return removed,
            }
        }
    }

    /// Gives up the lock of the file, whose name goes first.
    fn remove_file(&mut self) {
        let Some(file) = self.file.take() else {
            return;
        };
        // One that is not there any more was removed with the directory, or by hand.
        if !is_named(&self.directory, &file).unwrap_or(false) {
            return;
        }
        match unlinkat(&self.directory, LOCK, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => log::warn!("cannot remove the file of a lock: {error}"),
        }
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        self.remove_file();
    }
}

/// Removes what is in a directory, but the file of that name. No link is followed.
fn remove_entries(directory: &File, kept: Option<&str>) -> io::Result<()> {
    let entries = Dir::read_from(directory)?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_owned()));
    for name in names.collect::<rustix::io::Result<Vec<_>>>()? {
        let is_kept = kept.is_some_and(|kept| name.as_bytes() == kept.as_bytes());
        if is_kept || matches!(name.as_bytes(), b"." | b"..") {
            continue;
        }
        match unlinkat(directory, name.as_c_str(), AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = openat(directory, name.as_c_str(), flags, Mode::empty())?;
                remove_entries(&File::from(below), None)?;
                unlinkat(directory, name.as_c_str(), AtFlags::REMOVEDIR)?;
            }
            removed => removed?,
        }
    }
    Ok(())
}

/// Locks the file of the lock; `None` when someone else has it, or had it until a moment ago.
fn lock_file(directory: &File) -> rustix::io::Result<Option<File>> {
    lock_file_by(directory, |file| {
        flock(file, FlockOperation::NonBlockingLockExclusive)
    })
}

/// As [`lock_file`], with what locks it.
fn lock_file_by(
    directory: &File,
    lock: impl FnOnce(&File) -> rustix::io::Result<()>,
) -> rustix::io::Result<Option<File>> {
    let open = |more: OFlags| {
        openat(
            directory,
            LOCK,
            OFlags::CREATE | more | flags(),
            Mode::RUSR | Mode::WUSR,
        )
    };
    let (file, is_new) = match open(OFlags::EXCL) {
        Err(Errno::EXIST) => (open(OFlags::empty())?, false),
        made => (made?, true),
    };
    let file = File::from(file);
    match lock(&file) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => {
            // Somebody else's may be held where locks are to be had.
            if is_new {
                let _ = unlinkat(directory, LOCK, AtFlags::empty());
            }
            return Err(error);
        }
    }
    Ok(is_named(directory, &file)?.then_some(file))
}

/// Whether the file of a lock still has its name. It is opened again for that: a client of NFS asks the server of a name
/// that it opens, and believes for a while what it knew of one that it only looks at.
fn is_named(directory: &File, file: &File) -> rustix::io::Result<bool> {
    let named = match openat(directory, LOCK, flags(), Mode::empty()) {
        Ok(named) => File::from(named),
        Err(Errno::NOENT | Errno::STALE) => return Ok(false),
        Err(error) => return Err(error),
    };
    // Of one that another host has removed nothing is known any more.
    let (Ok(ours), Ok(named)) = (file.metadata(), named.metadata()) else {
        return Ok(false);
    };
    Ok((ours.dev(), ours.ino()) == (named.dev(), named.ino()))
}

/// NFS gives a lock to who may write.
fn flags() -> OFlags {
    OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Whether a directory has nothing in it but the file of a lock, and what NFS and FUSE keep for a moment of one that was
/// removed while somebody had it open.
fn holds_what_passes(path: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if name != LOCK && !name.starts_with(".nfs") && !name.starts_with(".fuse_hidden") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a file system has no locks of directories (NFS wants what is locked to be open for writing, which a
/// directory never is).
fn has_no_locks_of_directories(error: Errno) -> bool {
    matches!(
        error,
        Errno::BADF | Errno::INVAL | Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP
    )
}

/// Whether a file system has no room for a file, or takes none.
fn cannot_be_made(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOSPC | Errno::DQUOT | Errno::ROFS | Errno::ACCESS | Errno::PERM
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_is_left_where_there_are_no_locks() {
        let dir = tempfile::tempdir().unwrap();
        let directory = File::open(dir.path()).unwrap();
        let refused = || lock_file_by(&directory, |_| Err(Errno::NOLCK)).unwrap_err();
        assert_eq!(refused(), Errno::NOLCK);
        assert_eq!(names(dir.path()), Vec::<String>::new());
        // It is somebody else's.
        fs::write(dir.path().join(LOCK), "").unwrap();
        assert_eq!(refused(), Errno::NOLCK);
        assert_eq!(names(dir.path()), [LOCK]);
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.collect()
    }

    #[test]
    fn one_has_a_directory_and_leaves_nothing_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let lock = lock_directory(dir.path()).unwrap().unwrap();
        assert_eq!(names(dir.path()), [LOCK]);
        assert!(lock_directory(dir.path()).unwrap().is_none());
        drop(lock);
        assert!(names(dir.path()).is_empty());
        drop(lock_directory(dir.path()).unwrap().unwrap());
    }

    /// The lock of a directory itself is no secret of this host's, that of the file is seen by all.
    #[test]
    fn the_lock_of_the_file_alone_keeps_others_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOCK);
        let of_another_host = File::create(&path).unwrap();
        flock(&of_another_host, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(lock_directory(dir.path()).unwrap().is_none());
        assert!(path.exists());
        // As one that was killed leaves it.
        drop(of_another_host);
        drop(lock_directory(dir.path()).unwrap().unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_lock_of_what_lost_its_name_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let directory = File::open(dir.path()).unwrap();
        let old = lock_file(&directory).unwrap().unwrap();
        fs::remove_file(dir.path().join(LOCK)).unwrap();
        assert!(!is_named(&directory, &old).unwrap());
        let new = lock_file(&directory).unwrap().unwrap();
        // Nobody else's is removed.
        drop(DirectoryLock {
            directory: directory.try_clone().unwrap(),
            file: Some(old),
        });
        assert!(is_named(&directory, &new).unwrap());
    }

    #[test]
    fn it_goes_along_with_a_directory_that_is_renamed_and_with_one_that_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        let lock = lock_directory(&from).unwrap().unwrap();
        fs::rename(&from, &to).unwrap();
        assert!(lock_directory(&to).unwrap().is_none());
        drop(lock);
        assert!(names(&to).is_empty());
        let lock = lock_directory(&to).unwrap().unwrap();
        lock.remove_directory(&to).unwrap();
        assert!(!to.exists());
    }

    #[test]
    fn a_directory_is_removed_when_another_host_is_done_with_it_and_never_with_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("notes"), "mine").unwrap();
        let lock = lock_directory(&path).unwrap().unwrap();
        let refused = lock.remove_directory(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::DirectoryNotEmpty);
        assert_eq!(names(&path), ["notes"]);
        fs::remove_file(path.join("notes")).unwrap();

        let lock = lock_directory(&path).unwrap().unwrap();
        // As another host takes it in the moment in which it has no file.
        let file = path.join(LOCK);
        fs::remove_file(&file).unwrap();
        let of_another_host = File::create(&file).unwrap();
        flock(&of_another_host, FlockOperation::NonBlockingLockExclusive).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(10 * LOOK);
                fs::remove_file(&file).unwrap();
                drop(of_another_host);
            });
            lock.remove_directory(&path).unwrap();
        });
        assert!(!path.exists());
    }
}
