//! The header file: two slots, and the order in which they are written.
//!
//! # Layout and order of writes
//!
//! The file is 32 KiB: slot 0 at offset 0, slot 1 at 16 KiB, each as `slot.rs` describes.
//!
//! 1. *Creation*: the file is made (it must not exist), both slots are written with sequence
//!    numbers 1 and 2, the file is synced, then its directory. A crash before that leaves a file
//!    in a directory that nothing refers to yet (a disk gets its final name last).
//! 2. *Update*, under an exclusive `flock` of the file: the slot that does **not** hold the newest
//!    whole copy is written with the next sequence number, then the file is synced. A crash in the
//!    middle leaves that slot old, new, or torn (its checksum is wrong whatever mixture of 512-byte
//!    sectors arrived, and the mixture carries no valid HMAC either); the newest copy from before
//!    was not touched, so the disk has either its old or its new header, whole.
//! 3. *Erasure*: both slots are overwritten with zeros and the file is synced, before any file of
//!    the disk is unlinked. A crash in between leaves a disk that cannot be opened any more and is
//!    still seen, so that the deletion can be repeated.
//!
//! A reader takes the newest whole copy and logs a warning when the other one is torn. It never
//! repairs: the next regular update writes over the torn slot, because that is not the newest.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::slot::{self, Slot};
use super::{EnvelopeError, Header, SLOT_LEN, UnverifiedHeader};
use crate::keys::Dek;

/// Bytes of a header file.
pub const HEADER_FILE_LEN: u64 = 2 * SLOT_LEN as u64;

/// How long a lock is waited for. An update holds it for one question to a vault and one sync.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// An open header file.
#[derive(Debug)]
pub struct HeaderFile {
    file: File,
    path: PathBuf,
}

impl HeaderFile {
    /// Makes the header file of a new disk, mode 0600, durable with its directory entry.
    ///
    /// # Errors
    /// [`EnvelopeError::Io`] (an existing file is one) or [`EnvelopeError::Unwritable`].
    pub fn create(path: &Path, header: &Header, dek: &Dek) -> Result<Self, EnvelopeError> {
        let slots = [slot::encode(header, 1, dek)?, slot::encode(header, 2, dek)?].concat();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(io_error("create", path))?;
        file.write_all_at(&slots, 0)
            .map_err(io_error("write", path))?;
        file.sync_all().map_err(io_error("sync", path))?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        File::open(directory)
            .and_then(|d| d.sync_all())
            .map_err(io_error("sync", directory))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Opens an existing header file for reading and updating.
    ///
    /// # Errors
    /// [`EnvelopeError::Io`].
    pub fn open(path: &Path) -> Result<Self, EnvelopeError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .map_err(io_error("open", path))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// The newest whole copy, read under a shared lock so that no update is in the middle.
    ///
    /// # Errors
    /// One of the kinds of unusable header of [`EnvelopeError`]; the file is never changed.
    pub fn read(&self) -> Result<UnverifiedHeader, EnvelopeError> {
        let _shared = self.flock(FlockOperation::NonBlockingLockShared)?;
        self.newest().map(|(_, header)| header)
    }

    /// Locks out every other update, and readers, until the guard is dropped. Waits for a while
    /// for somebody else's lock.
    ///
    /// # Errors
    /// [`EnvelopeError::Busy`] or [`EnvelopeError::Io`].
    pub fn lock(&self) -> Result<HeaderLock<'_>, EnvelopeError> {
        let guard = self.flock(FlockOperation::NonBlockingLockExclusive)?;
        Ok(HeaderLock {
            file: self,
            _guard: guard,
        })
    }

    fn flock(&self, operation: FlockOperation) -> Result<FlockGuard<'_>, EnvelopeError> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match flock(&self.file, operation) {
                Ok(()) => return Ok(FlockGuard(&self.file)),
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    return Err(EnvelopeError::Busy {
                        path: self.path.clone(),
                    });
                }
                Err(e) => return Err(io_error("lock", &self.path)(e.into())),
            }
        }
    }

    /// The newest whole copy and the slot that it is in.
    fn newest(&self) -> Result<(u64, UnverifiedHeader), EnvelopeError> {
        let (path, bytes) = (&self.path, self.bytes()?);
        let (first, second) = bytes.split_at(SLOT_LEN);
        match (slot::decode(first, path)?, slot::decode(second, path)?) {
            (Slot::Whole(a), Slot::Whole(b)) if a.sequence() > b.sequence() => Ok((0, *a)),
            (Slot::Whole(_), Slot::Whole(b)) => Ok((1, *b)),
            (Slot::Whole(a), _) => Ok((0, self.only_one(*a, 1))),
            (_, Slot::Whole(b)) => Ok((1, self.only_one(*b, 0))),
            (Slot::Zero, Slot::Zero) => Err(EnvelopeError::Erased { path: path.clone() }),
            (Slot::Foreign | Slot::Zero, Slot::Foreign | Slot::Zero) => {
                Err(EnvelopeError::Foreign { path: path.clone() })
            }
            _ => Err(EnvelopeError::BothTorn { path: path.clone() }),
        }
    }

    /// Both copies as they are in the file.
    fn bytes(&self) -> Result<Vec<u8>, EnvelopeError> {
        let path = &self.path;
        let metadata = self.file.metadata().map_err(io_error("inspect", path))?;
        if metadata.len() != HEADER_FILE_LEN || !metadata.is_file() {
            return Err(EnvelopeError::Length {
                path: path.clone(),
                expected: HEADER_FILE_LEN,
                actual: metadata.len(),
            });
        }
        let mut bytes = vec![0; 2 * SLOT_LEN];
        self.file
            .read_exact_at(&mut bytes, 0)
            .map_err(io_error("read", path))?;
        Ok(bytes)
    }

    /// What each of the two copies is, for a check. An unusable file is no error.
    ///
    /// # Errors
    /// [`EnvelopeError::Io`], [`EnvelopeError::Busy`], [`EnvelopeError::Length`].
    pub fn copies(&self) -> Result<[HeaderCopy; 2], EnvelopeError> {
        let _shared = self.flock(FlockOperation::NonBlockingLockShared)?;
        let bytes = self.bytes()?;
        let (first, second) = bytes.split_at(SLOT_LEN);
        Ok(
            [first, second].map(|copy| match slot::decode(copy, &self.path) {
                Ok(Slot::Whole(header)) => HeaderCopy::Whole {
                    sequence: header.sequence(),
                },
                Ok(Slot::Torn) => HeaderCopy::Torn,
                Ok(Slot::Zero | Slot::Foreign) => HeaderCopy::NoHeader,
                Err(error) => HeaderCopy::Unusable(error.to_string()),
            }),
        )
    }

    fn only_one(&self, header: UnverifiedHeader, torn: u32) -> UnverifiedHeader {
        log::warn!(
            "{}: header copy {torn} is torn or damaged; using the other one (sequence {}), the next \
             update writes over the torn one",
            self.path.display(),
            header.sequence(),
        );
        header
    }
}

/// What one of the two copies in a header file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderCopy {
    /// A header.
    Whole {
        /// Its sequence number.
        sequence: u64,
    },
    /// A header whose checksum is wrong.
    Torn,
    /// Zeros, or something else that never was one.
    NoHeader,
    /// Whole, and yet nothing that this program can use: why.
    Unusable(String),
}

/// The right to update a header file: an exclusive lock, given up on drop.
#[derive(Debug)]
pub struct HeaderLock<'a> {
    file: &'a HeaderFile,
    _guard: FlockGuard<'a>,
}

impl HeaderLock<'_> {
    /// As [`HeaderFile::read`], under this lock.
    ///
    /// # Errors
    /// As [`HeaderFile::read`].
    pub fn read(&self) -> Result<UnverifiedHeader, EnvelopeError> {
        self.file.newest().map(|(_, header)| header)
    }

    /// Writes `header` into the slot that does not hold the newest copy, and syncs. `dek` is its
    /// top layer's. The other slot still holds the header from before.
    ///
    /// # Errors
    /// As [`HeaderFile::read`], because an unusable file is not written to;
    /// [`EnvelopeError::Unwritable`]; [`EnvelopeError::Io`], after which the header is the old or
    /// the new one.
    pub fn write(&mut self, header: &Header, dek: &Dek) -> Result<(), EnvelopeError> {
        let (newest, current) = self.file.newest()?;
        let sequence =
            current
                .sequence()
                .checked_add(1)
                .ok_or_else(|| EnvelopeError::Unwritable {
                    name: header.name.clone(),
                    reason: "its sequence number is at its end".into(),
                })?;
        let slot = slot::encode(header, sequence, dek)?;
        self.put(&slot, (1 - newest) * SLOT_LEN as u64)
    }

    /// Writes `header` into both slots, one synced after the other, so that neither holds what it
    /// replaces: after a re-wrap the old wrapping is not kept around.
    ///
    /// # Errors
    /// As [`HeaderLock::write`].
    pub fn write_both(&mut self, header: &Header, dek: &Dek) -> Result<(), EnvelopeError> {
        self.write(header, dek)?;
        self.write(header, dek)
    }

    /// Writes the whole copy over the other one, which is not, byte for byte: so it takes no key.
    /// With two whole copies, or none, nothing is done. Whether something was.
    ///
    /// # Errors
    /// As [`HeaderLock::read`].
    pub fn mend(&mut self) -> Result<bool, EnvelopeError> {
        let (newest, _) = self.file.newest()?;
        let bytes = self.file.bytes()?;
        let (first, second) = bytes.split_at(SLOT_LEN);
        let (good, bad) = match newest {
            0 => (first, second),
            _ => (second, first),
        };
        if matches!(slot::decode(bad, &self.file.path)?, Slot::Whole(_)) {
            return Ok(false);
        }
        self.put(good, (1 - newest) * SLOT_LEN as u64)?;
        Ok(true)
    }

    /// Overwrites both copies with zeros and syncs: the wrapped DEKs are gone, and with them the
    /// data. (A file system or drive that writes elsewhere may keep the old blocks for a while.)
    ///
    /// # Errors
    /// [`EnvelopeError::Io`].
    pub fn erase(&mut self) -> Result<(), EnvelopeError> {
        self.put(&[0; 2 * SLOT_LEN], 0)
    }

    fn put(&mut self, bytes: &[u8], offset: u64) -> Result<(), EnvelopeError> {
        let HeaderFile { file, path } = self.file;
        file.write_all_at(bytes, offset)
            .map_err(io_error("write", path))?;
        file.sync_all().map_err(io_error("sync", path))
    }
}

/// Unlocks on drop.
#[derive(Debug)]
struct FlockGuard<'a>(&'a File);

impl Drop for FlockGuard<'_> {
    fn drop(&mut self) {
        // Unlocking an open file cannot fail; closing it would unlock it in any case.
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

fn io_error(call: &'static str, path: &Path) -> impl Fn(io::Error) -> EnvelopeError {
    let path = path.to_owned();
    move |source| EnvelopeError::Io {
        call,
        path: path.clone(),
        source,
    }
}
