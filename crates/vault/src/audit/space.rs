//! Room for a log: how much there is, and a reserve for what must be recorded when there is none.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use database::Connection;
use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// Less than this on a file system is little, whatever its size.
const LOW: u64 = 64 << 20;
/// A part of a file system less than which is little: one in so many.
const LOW_PART: u64 = 100;
/// Bytes of a reserve: thousands of records, with the pages that their transactions touch.
const RESERVE: u64 = 4 << 20;
/// With less than this the reserve is needed.
const NEEDED: u64 = 1 << 20;
/// With less than this only what is essential is recorded: more than a reserve that was given up, so
/// that nothing else uses it up.
const SPENT: u64 = 2 * RESERVE;
/// Pages after which the write-ahead log is taken over, when there is little room for it.
const SMALL_WAL: u32 = 50;

/// The room on the file system of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that can be written.
    pub available: u64,
    /// Its size in bytes.
    pub total: u64,
}

impl Space {
    /// The room on the file system on which `path` is.
    ///
    /// # Errors
    /// What the system says.
    pub fn at(path: &Path) -> io::Result<Self> {
        let found = statvfs(path)?;
        Ok(Self {
            available: found.f_bavail.saturating_mul(found.f_frsize),
            total: found.f_blocks.saturating_mul(found.f_frsize),
        })
    }

    /// What is said when there is little in `dir`.
    pub fn warning(&self, dir: &Path) -> String {
        format!(
            "there are {} MiB left for the audit logs in {}{}: make room, or archive records with \
             `sealdisk audit archive`",
            self.available >> 20,
            dir.display(),
            self.consequence()
        )
    }

    /// What it means that there is no more, as the end of a sentence.
    pub fn consequence(&self) -> String {
        match self.available < SPENT {
            true => ", and only what is essential is recorded and done".into(),
            false => format!(
                "; with less than {} MiB only what is essential is recorded and done",
                SPENT >> 20
            ),
        }
    }

    /// Whether somebody should make room now.
    pub fn is_low(&self) -> bool {
        self.available < LOW || self.available < self.total / LOW_PART
    }
}

/// A file beside a log that only takes up room. It is given up when the file system is full, for what
/// is essential: that a key was disabled, that a running disk used its key. Everything else is refused
/// before that. It is made again once there is room.
///
/// It cannot be kept from others who write to the same file system, so that the logs are best on one
/// of their own.
#[derive(Debug, Clone)]
pub struct Reserve {
    /// `None` for a log that is not in a file here.
    path: Option<PathBuf>,
}

impl Reserve {
    /// The reserve of the log in the database `db`.
    pub fn of(db: &Path) -> Self {
        Self {
            path: Some(db.with_file_name("audit.reserve")),
        }
    }

    /// That of a log on a server, whose room is there: none, and nothing is refused for want of it.
    pub fn none() -> Self {
        Self { path: None }
    }

    /// The file, and the directory that it is in.
    fn place(&self) -> Option<(&Path, &Path)> {
        let path = self.path.as_deref()?;
        Some((path, path.parent()?))
    }

    /// Makes the reserve where there is none and room enough for it. That it cannot be made is for
    /// [`Space::is_low`] to tell.
    pub fn keep(&self) {
        let Some((path, dir)) = self.place() else {
            return;
        };
        // A copy of it may be a hole.
        if self.size() >= RESERVE || !Space::at(dir).is_ok_and(|s| s.available > SPENT + RESERVE) {
            return;
        }
        let made = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .and_then(|file| {
                fallocate(&file, FallocateFlags::empty(), 0, RESERVE)?;
                Ok(())
            });
        if let Err(e) = made {
            log::debug!("no reserve of {}: {e}", path.display());
            // What is not whole is none.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Gives the reserve up if there is no room. To be called before the database is opened too: that
    /// takes room for the write-ahead log and its index.
    pub fn release_if_full(&self) {
        let Some((path, dir)) = self.place() else {
            return;
        };
        if Space::at(dir).is_ok_and(|space| space.available < NEEDED)
            && std::fs::remove_file(path).is_ok()
        {
            log::error!(
                "the file system of {} is full: the reserve for essential records is given up; make \
                 room, or archive records with `sealdisk audit archive`",
                dir.display()
            );
        }
    }

    /// Whether there is room for essential records only.
    pub fn is_spent(&self) -> bool {
        let space = self.place().map(|(_, dir)| Space::at(dir));
        matches!(space, Some(Ok(space)) if space.available < SPENT)
    }

    /// As [`release_if_full`](Self::release_if_full), for something essential that is to be recorded
    /// in `db`, whose write-ahead log stays small from now on.
    pub fn make_room(&self, db: &Connection) {
        self.release_if_full();
        if !self.is_spent() {
            return;
        }
        // The write-ahead log is used again from its beginning, and stays small from now on.
        if let Err(e) = db.limit_journal(SMALL_WAL) {
            log::warn!("the write-ahead log could not be taken over: {e}");
        }
    }

    /// The room that it takes up, in bytes, 0 when it was given up.
    pub fn size(&self) -> u64 {
        let path = self.path.as_ref();
        let metadata = path.and_then(|path| path.metadata().ok());
        metadata.map_or(0, |metadata| metadata.blocks() * 512)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_what_little_room_means_now() {
        let warning = |mib: u64| {
            let space = Space {
                available: mib << 20,
                total: 1 << 40,
            };
            space.warning(Path::new("/state"))
        };
        // All is done still.
        assert!(warning(15).contains("; with less than 8 MiB only"));
        assert!(warning(8).contains("; with less than 8 MiB only"));
        assert!(warning(7).contains(", and only what is essential is"));
    }
}
