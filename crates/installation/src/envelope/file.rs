//! The header file: its slots, and the order in which they are written.
//!
//! # Layout and order of writes
//!
//! The file is 192 KiB: slot 0 at 64 KiB, slot 1 at 128 KiB, each as `slot.rs` describes. The two
//! slots of format version 1 were at 0 and 16 KiB, where there are zeros now, and the file ended
//! behind them, at 32 KiB. Of all whole copies the one with the highest sequence number counts.
//!
//! 1. *Creation*: the file is made (it must not exist), both slots are written with sequence numbers 1 and 2, the file
//!    is synced, then its directory. A crash before that leaves a file in a directory that nothing refers to yet.
//! 2. *Update*, under an exclusive `flock` of the file: the newest whole copy is written over itself, and
//!    synced, unless whoever has the lock has done so already (see below). Then the slot that does **not** hold
//!    it is written with the next sequence number, and the file is synced. A crash in the
//!    middle leaves that slot old, new, or torn (its checksum is wrong whatever mixture of 512-byte
//!    sectors arrived, and the mixture carries no valid HMAC either); the newest copy from before
//!    has the same bytes whatever of them arrived, so the disk has either its old or its new header, whole.
//! 3. *First update of a file of version 1*: the file is made 192 KiB long and synced, by zeros,
//!    which are no copy; slot 0 is written and synced, then slot 1, with the next two sequence
//!    numbers; then the old slots are overwritten with zeros and synced. Until slot 0 is whole the
//!    newest old copy counts, and the next update begins again; from then on slot 0 counts, or slot
//!    1, and what is left in the old places has lower numbers, whole or torn. Every later update
//!    that finds something there overwrites it in the end, when both new slots are whole.
//! 4. *Erasure*: the whole file is overwritten with zeros and synced, before any file of the disk
//!    is unlinked. A crash in between leaves a disk that cannot be opened any more and is still
//!    seen, so that the deletion can be repeated.
//!
//! A reader takes the newest whole copy and logs a warning when the other one is torn. It never
//! repairs: the next regular update writes over the torn slot, because that is not the newest.
//!
//! # What is read, and what storage has
//!
//! After a sync that failed the kernel keeps in its page cache what was written and takes it for clean: it is read
//! by everybody, storage does not have it, and a later sync succeeds and writes nothing. After a process that was
//! killed before its sync, what is read may still fail to be written. So:
//!
//! * Who wrote drops the pages after a failure, while nobody reads: what is read next is what storage has, as far as
//!   the kernel lets go of them.
//! * A copy is written over only when storage has the other one for sure: that is written again, and synced, before.
//!   So of two copies that say the same storage has at least one, and of two that differ any of the two may be the
//!   only one: [`UnverifiedHeader::others`] has what the other one says.
//! * Who concludes from what is read that something is over, and does not write the header anyway, has storage hold it
//!   first: [`HeaderLock::settle`].

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FlockOperation, fadvise, flock};
use rustix::io::Errno;

use super::slot::{self, Slot, VERSION_1, VERSION_2, Version};
use super::{EnvelopeError, Header, HeaderAuthority, UnverifiedHeader};
use keys::Dek;

/// Bytes of a header file.
pub const HEADER_FILE_LEN: u64 = 192 << 10;
/// Where its two slots begin.
pub const SLOT_OFFSETS: [u64; 2] = [NEW.at(0) as u64, NEW.at(1) as u64];

/// Two places for slots of one version.
#[derive(Clone, Copy)]
struct Pair {
    version: Version,
    first: usize,
}

/// Where version 1 had its slots.
const OLD: Pair = Pair {
    version: VERSION_1,
    first: 0,
};
/// Where they are now.
const NEW: Pair = Pair {
    version: VERSION_2,
    first: 64 << 10,
};
/// Bytes that a header file of version 1 has.
const OLD_FILE_LEN: usize = OLD.at(2);

impl Pair {
    /// Where the slot of that number begins.
    const fn at(self, number: usize) -> usize {
        self.first + number * self.version.slot_len
    }

    /// The bytes of its two slots; none behind the end of a file.
    fn slots(self, bytes: &[u8]) -> [&[u8]; 2] {
        [0, 1].map(|number| {
            bytes
                .get(self.at(number)..self.at(number + 1))
                .unwrap_or(&[])
        })
    }
}

/// Memory for the bytes of one header file after another: whoever reads thousands of them has it made, and wiped when
/// it is freed, once.
#[derive(Debug, Default)]
pub struct HeaderBuffer(Vec<u8>);

impl HeaderBuffer {
    fn of(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len {
            self.0 = vec![0; len];
        }
        &mut self.0[..len]
    }
}

/// The newest whole copy, and where it is.
struct Newest {
    header: UnverifiedHeader,
    pair: Pair,
    number: usize,
}

/// How long a lock is waited for. An update holds it for one question to a vault and one sync.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// An open header file.
#[derive(Debug)]
pub struct HeaderFile {
    file: File,
    path: PathBuf,
    /// Why it could be opened to be read only.
    unwritable: Option<i32>,
}

impl HeaderFile {
    /// Makes the header file of a new disk, mode 0600, durable with its directory entry.
    ///
    /// # Errors
    /// [`EnvelopeError::Io`] (an existing file is one) or [`EnvelopeError::Unwritable`].
    pub fn create(path: &Path, header: &Header, dek: &Dek) -> Result<Self, EnvelopeError> {
        let mut bytes = vec![0; NEW.at(0)];
        for sequence in 1..=2 {
            bytes.extend(slot::encode(header, sequence, dek)?);
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(io_error("create", path))?;
        file.write_all_at(&bytes, 0)
            .map_err(io_error("write", path))?;
        file.sync_all().map_err(io_error("sync", path))?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        match File::open(directory).and_then(|d| d.sync_all()) {
            // Where a file system cannot do that for a directory alone, nobody can.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            synced => synced.map_err(io_error("sync", directory))?,
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            unwritable: None,
        })
    }

    /// Opens an existing header file for reading and updating; only for reading where it cannot be written
    /// to.
    ///
    /// # Errors
    /// [`EnvelopeError::Io`].
    pub fn open(path: &Path) -> Result<Self, EnvelopeError> {
        let open = |write| {
            OpenOptions::new()
                .read(true)
                .write(write)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(path)
        };
        let (file, unwritable) = match open(true) {
            Ok(file) => (Ok(file), None),
            Err(error) => match error.raw_os_error() {
                Some(why @ (libc::EROFS | libc::EACCES | libc::EPERM)) => {
                    (open(false).map_err(|_| error), Some(why))
                }
                _ => (Err(error), None),
            },
        };
        Ok(Self {
            file: file.map_err(io_error("open", path))?,
            path: path.to_owned(),
            unwritable,
        })
    }

    /// Whether it can be written to.
    ///
    /// # Errors
    /// [`EnvelopeError::Io`] for why not.
    pub fn is_writable(&self) -> Result<(), EnvelopeError> {
        match self.unwritable {
            Some(why) => Err(io_error("write", &self.path)(io::Error::from_raw_os_error(
                why,
            ))),
            None => Ok(()),
        }
    }

    /// The newest whole copy, read under a shared lock so that no update is in the middle.
    ///
    /// # Errors
    /// One of the kinds of unusable header of [`EnvelopeError`]; the file is never changed.
    pub fn read(&self) -> Result<UnverifiedHeader, EnvelopeError> {
        self.read_with(&mut HeaderBuffer::default())
    }

    /// As [`HeaderFile::read`], by way of memory that is there already.
    ///
    /// # Errors
    /// As [`HeaderFile::read`].
    pub fn read_with(&self, buffer: &mut HeaderBuffer) -> Result<UnverifiedHeader, EnvelopeError> {
        let _shared = self.flock(FlockOperation::NonBlockingLockShared)?;
        Ok(self.newest(self.bytes(buffer)?)?.header)
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
            is_durable: false,
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

    /// The newest whole copy in `bytes`, which are the file's. Of each other one the payload is read too, unless it is
    /// the same.
    fn newest(&self, bytes: &[u8]) -> Result<Newest, EnvelopeError> {
        let path = &self.path;
        let (mut whole, mut torn, mut foreign) = (Vec::new(), Vec::new(), false);
        for pair in [OLD, NEW] {
            for (number, slot) in pair.slots(bytes).into_iter().enumerate() {
                match slot::decode(pair.version, slot, path)? {
                    Slot::Whole(copy) => whole.push((pair, number, copy)),
                    Slot::Torn => torn.push((pair, number)),
                    Slot::Foreign => foreign = true,
                    Slot::Zero => {}
                }
            }
        }
        // Of two with the same number the later one counts.
        let newest = whole.iter().max_by_key(|(_, _, copy)| copy.sequence());
        let Some((pair, number, newest)) = newest else {
            let path = path.clone();
            return Err(match (torn.is_empty(), foreign) {
                (false, _) => EnvelopeError::BothTorn { path },
                (true, true) => EnvelopeError::Foreign { path },
                (true, false) => EnvelopeError::Erased { path },
            });
        };
        let mut header = newest.header(path)?;
        for (_, _, other) in &whole {
            if !other.says_the_same(newest) {
                header.others.push(other.header(path)?.into_claims());
            }
        }
        header.is_alone = !whole
            .iter()
            .any(|(of, other, _)| of.first == pair.first && other != number);
        // What an interrupted first update left in the old places is of no use any more.
        if let Some((_, torn)) = torn.iter().find(|(of, _)| of.first == pair.first) {
            log::warn!(
                "{}: header copy {torn} is torn or damaged; using the other one (sequence {}), the \
                 next update writes over the torn one",
                path.display(),
                header.sequence(),
            );
        }
        Ok(Newest {
            header,
            pair: *pair,
            number: *number,
        })
    }

    /// The whole file.
    fn bytes<'a>(&self, buffer: &'a mut HeaderBuffer) -> Result<&'a [u8], EnvelopeError> {
        let path = &self.path;
        let metadata = self.file.metadata().map_err(io_error("inspect", path))?;
        let actual = metadata.len();
        if !metadata.is_file() || (actual != HEADER_FILE_LEN && actual != OLD_FILE_LEN as u64) {
            return Err(EnvelopeError::Length {
                path: path.clone(),
                expected: HEADER_FILE_LEN,
                actual,
            });
        }
        let bytes = buffer.of(actual as usize);
        self.file
            .read_exact_at(bytes, 0)
            .map_err(io_error("read", path))?;
        Ok(bytes)
    }

    /// Has whoever reads next read what storage has.
    fn forget_pages(&self) {
        if let Err(error) = fadvise(&self.file, 0, None, Advice::DontNeed) {
            log::warn!(
                "{}: what could not be synced may be read for a while: {error}",
                self.path.display()
            );
        }
    }

    /// What each of the two copies is, for a check. An unusable file is no error.
    ///
    /// # Errors
    /// [`EnvelopeError::Io`], [`EnvelopeError::Busy`], [`EnvelopeError::Length`].
    pub fn copies(&self) -> Result<[HeaderCopy; 2], EnvelopeError> {
        let _shared = self.flock(FlockOperation::NonBlockingLockShared)?;
        let mut buffer = HeaderBuffer::default();
        let bytes = self.bytes(&mut buffer)?;
        let pair = match self.newest(bytes) {
            Ok(newest) => newest.pair,
            Err(_) if bytes.len() == OLD_FILE_LEN => OLD,
            Err(_) => NEW,
        };
        let unusable = |error: EnvelopeError| HeaderCopy::Unusable(error.to_string());
        Ok(pair
            .slots(bytes)
            .map(|copy| match slot::decode(pair.version, copy, &self.path) {
                Ok(Slot::Whole(copy)) => match copy.header(&self.path) {
                    Ok(header) => HeaderCopy::Whole {
                        sequence: header.sequence(),
                    },
                    Err(error) => unusable(error),
                },
                Ok(Slot::Torn) => HeaderCopy::Torn,
                Ok(Slot::Zero | Slot::Foreign) => HeaderCopy::NoHeader,
                Err(error) => unusable(error),
            }))
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
    /// The newest copy was written and synced under this lock.
    is_durable: bool,
}

impl HeaderLock<'_> {
    /// As [`HeaderFile::read`], under this lock.
    ///
    /// # Errors
    /// As [`HeaderFile::read`].
    pub fn read(&self) -> Result<UnverifiedHeader, EnvelopeError> {
        let mut buffer = HeaderBuffer::default();
        Ok(self.file.newest(self.file.bytes(&mut buffer)?)?.header)
    }

    /// Has storage hold the newest copy, which may so far be in the page cache only. A later [`write`](Self::write)
    /// under this lock has that much less to do.
    ///
    /// # Errors
    /// As [`HeaderFile::read`], because an unusable file is not written to; [`EnvelopeError::Io`].
    pub fn make_durable(&mut self) -> Result<(), EnvelopeError> {
        let file = self.file;
        let mut buffer = HeaderBuffer::default();
        let bytes = file.bytes(&mut buffer)?;
        let newest = file.newest(bytes)?;
        self.keep(bytes, &newest)
    }

    /// As [`HeaderLock::make_durable`]; and has the other copy say the same, byte for byte, so that nothing is left of
    /// what it said. For whoever goes by a header that somebody else may have failed to write. That takes no key. A
    /// file that cannot be written to is good when both copies say the same.
    ///
    /// # Errors
    /// As [`HeaderLock::make_durable`].
    pub fn settle(&mut self) -> Result<(), EnvelopeError> {
        let file = self.file;
        let mut buffer = HeaderBuffer::default();
        let bytes = file.bytes(&mut buffer)?;
        let newest = file.newest(bytes)?;
        let says_the_same = !newest.header.is_alone && newest.header.others.is_empty();
        if says_the_same && file.is_writable().is_err() {
            return Ok(());
        }
        self.keep(bytes, &newest)?;
        if says_the_same {
            return Ok(());
        }
        let Newest { pair, number, .. } = newest;
        self.put(pair.slots(bytes)[number], pair.at(1 - number))?;
        match pair.version.number {
            1 => Ok(()),
            _ => self.wipe_old(bytes),
        }
    }

    /// Overwrites what `bytes`, which are the file's, have in the places of version 1.
    fn wipe_old(&mut self, bytes: &[u8]) -> Result<(), EnvelopeError> {
        match slot::is_zero(&bytes[..OLD_FILE_LEN]) {
            true => Ok(()),
            false => self.put(&[0; OLD_FILE_LEN], 0),
        }
    }

    /// Writes the newest copy over itself, unless that was done.
    fn keep(&mut self, bytes: &[u8], newest: &Newest) -> Result<(), EnvelopeError> {
        let (pair, number) = (newest.pair, newest.number);
        match self.is_durable {
            true => Ok(()),
            false => self.put(pair.slots(bytes)[number], pair.at(number)),
        }
    }

    /// Writes `header` into the slot that does not hold the newest copy, and syncs, authenticated by its
    /// top layer's DEK or the [`HeaderKey`](super::HeaderKey) of that. The other slot still holds the header from before,
    /// and storage has it for sure before anything is touched; of a file of version 1,
    /// which becomes one of version 2, nothing does.
    ///
    /// # Errors
    /// As [`HeaderFile::read`], because an unusable file is not written to;
    /// [`EnvelopeError::Unwritable`]; [`EnvelopeError::Io`], after which the header is the old or
    /// the new one.
    pub fn write(
        &mut self,
        header: &Header,
        by: &impl HeaderAuthority,
    ) -> Result<(), EnvelopeError> {
        let file = self.file;
        let mut buffer = HeaderBuffer::default();
        let bytes = file.bytes(&mut buffer)?;
        let newest = file.newest(bytes)?;
        let sequence = newest.header.sequence();
        match newest.pair.version.number {
            1 => self.write_first(header, (bytes, &newest), by)?,
            _ => {
                let slot = slot::encode(header, next(header, sequence)?, by)?;
                self.keep(bytes, &newest)?;
                self.put(&slot, NEW.at(1 - newest.number))?;
            }
        }
        self.wipe_old(bytes)
    }

    /// The first update of a file of version 1, up to the overwriting of the old slots.
    fn write_first(
        &mut self,
        header: &Header,
        (bytes, newest): (&[u8], &Newest),
        by: &impl HeaderAuthority,
    ) -> Result<(), EnvelopeError> {
        let first = next(header, newest.header.sequence())?;
        let slots =
            [first, next(header, first)?].map(|sequence| slot::encode(header, sequence, by));
        self.keep(bytes, newest)?;
        let HeaderFile { file, path, .. } = self.file;
        file.set_len(HEADER_FILE_LEN)
            .map_err(io_error("make longer", path))?;
        file.sync_all().map_err(io_error("sync", path))?;
        for (number, slot) in slots.into_iter().enumerate() {
            self.put(&slot?, NEW.at(number))?;
        }
        Ok(())
    }

    /// Writes `header` into both slots, one synced after the other, so that neither holds what it
    /// replaces: after a re-wrap the old wrapping is not kept around.
    ///
    /// # Errors
    /// As [`HeaderLock::write`].
    pub fn write_both(
        &mut self,
        header: &Header,
        by: &impl HeaderAuthority,
    ) -> Result<(), EnvelopeError> {
        self.write(header, by)?;
        self.write(header, by)
    }

    /// Writes the whole copy over the other one, which is not, byte for byte: so it takes no key.
    /// With two whole copies, or none, nothing is done. Whether something was.
    ///
    /// # Errors
    /// As [`HeaderLock::read`].
    pub fn mend(&mut self) -> Result<bool, EnvelopeError> {
        let mut buffer = HeaderBuffer::default();
        let bytes = self.file.bytes(&mut buffer)?;
        let newest = self.file.newest(bytes)?;
        let (pair, number) = (newest.pair, newest.number);
        let slots = pair.slots(bytes);
        let (good, bad) = (slots[number], slots[1 - number]);
        if matches!(
            slot::decode(pair.version, bad, &self.file.path)?,
            Slot::Whole(_)
        ) {
            return Ok(false);
        }
        // Of two with the same number the later one counts, whichever storage has.
        self.keep(bytes, &newest)?;
        self.put(good, pair.at(1 - number))?;
        Ok(true)
    }

    /// Overwrites both copies with zeros and syncs: the wrapped DEKs are gone, and with them the
    /// data. (A file system or drive that writes elsewhere may keep the old blocks for a while.)
    ///
    /// # Errors
    /// [`EnvelopeError::Io`].
    pub fn erase(&mut self) -> Result<(), EnvelopeError> {
        self.put(&[0; HEADER_FILE_LEN as usize], 0)
    }

    /// Writes and syncs. Whatever is put, the newest copy there is then is durable after it.
    fn put(&mut self, bytes: &[u8], offset: usize) -> Result<(), EnvelopeError> {
        self.file.is_writable()?;
        self.is_durable = false;
        let HeaderFile { file, path, .. } = self.file;
        let written = file
            .write_all_at(bytes, offset as u64)
            .map_err(io_error("write", path))
            .and_then(|()| file.sync_all().map_err(io_error("sync", path)));
        match &written {
            Ok(()) => self.is_durable = true,
            Err(_) => self.file.forget_pages(),
        }
        written
    }
}

/// The sequence number after `sequence`.
fn next(header: &Header, sequence: u64) -> Result<u64, EnvelopeError> {
    sequence
        .checked_add(1)
        .ok_or_else(|| EnvelopeError::Unwritable {
            name: header.name.clone(),
            reason: "its sequence number is at its end".into(),
        })
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
