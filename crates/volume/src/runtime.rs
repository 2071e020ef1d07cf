//! The current map of an attached disk, on tmpfs: kept when only our processes die, gone with the
//! power, as unflushed writes may be.
//!
//! ```text
//! byte 0      signature "SDRUNMAP"                        8 bytes
//!      8      format version (6)                          u32
//!      12     zero                                        u32
//!      16     disk id, layer id                           2 UUIDs
//!      48     disk size in bytes                          u64
//!      56     boot id of the kernel                       UUID
//!      72     attach ids: this one, the one before        2 UUIDs
//!      104    CRC32C of bytes 0..104                      u32
//!      512    whether a sync has failed: 0 no, 1 of the   u64
//!             data file, 2 of the map file, 3 one had,
//!             and the disk was checked since
//!      1024   cache mode: 0 not said here, 1 write-back,  u64
//!             2 write-through
//!      2048   of 32 threads which map sectors each is         a line of 64
//!             changing the states of: the first one times     bytes each
//!             2^32, plus how many; 0: none
//!      4096   for each chunk of 128 map sectors how far    u64 each
//!             it is loaded: 2 when it is
//!      1 MiB  a bit for each map sector that is to be       64 a word
//!             flushed: it differs from the map file
//!      3 MiB  a bit for each map sector that a flush is     64 a word
//!             writing, which counts as the above when
//!             nobody is left to end that flush
//!      5 MiB  512 slots for writes into a data file that is    a line of 64
//!             memory: of each the sector on the disk that its  bytes each
//!             content belongs to, times 256, plus how many
//!             sectors it has (1 to 8, of one block); 0: none
//!      + 32 KiB  the content of the slots, ciphertext      4096 bytes each
//!      8 MiB  states as in the map file, without gaps: 504 bytes for each map sector
//! ```
//!
//! The file is sparse. A chunk gets its space when it is first used, and counts only when its word
//! says that it is loaded; of all others the map file speaks. A sector's bit in the second set is set
//! before the one in the first is cleared, so that the next process, after a kill at any moment, finds
//! what has to be flushed without reading the map file. The same is true of what a thread was changing:
//! `map::changing` has why.
//!
//! What a slot names, a process was copying into the data file when it died. It is copied again before
//! anything is served, and then it is named no more.
//!
//! The word at 512 belongs to no stamp and to no checksum: a data plane that sees a sync fail sets it
//! with one store, whatever becomes of it then. Once it is 1 or 2 every volume opened on this map fails
//! its flushes, also after it was stamped again. Only a check of the disk takes that back, by a 3: the
//! page cache may show of the map file what is not on the disk, so the next volume writes all of it that
//! is loaded here again, and its first flush makes it 0.
//!
//! The cache mode is what the guest last chose through `writeback`. No frontend says it again after a
//! reconnect, so it is here as soon as it is acknowledged, and outlives the process. A clean detach
//! carries it over into the disk's header.
//!
//! The disk's header names the last attach. A runtime map counts only when the header names one of
//! its two attach ids: if the disk was attached elsewhere meanwhile, the header names another and
//! the map is stale. Two ids are needed since the map is stamped before the header is written, so
//! that a crash between the two still leaves a map that counts.
//!
//! When the disk grows, the header says so first; then the file is made longer, then the stamp has
//! the new size. So a map may have been stamped for a smaller disk, and the file may be longer than
//! its stamp says, by zeros: nothing behind the stamped size was ever served from it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, fallocate, fstatfs};
use uuid::Uuid;

use keys::units::BLOCK_SIZE;

use super::failed_sync::{CHECKED, FailedSync};
use super::map::{BlockMap, is_sound};
use super::mapped::{CHANGING, LINE, MapParts, MapWords, Mapped, NOTE_WORDS, Words};
use super::redo::{self, Unfinished};
use super::{Geometry, VolumeError, format};

const SIGNATURE: &[u8; 8] = b"SDRUNMAP";
const STAMP_LEN: usize = 108;
const VERSION: u8 = 6;
/// Where it says whether a sync has failed.
const FAILED_SYNC_AT: usize = 512;
/// Room for the chunks of the largest disk.
const FLAGS_AT: usize = 4096;
const DIRTY_AT: usize = 1 << 20;
const FLUSHING_AT: usize = 3 << 20;
const REDO_AT: usize = 5 << 20;
const STATES_AT: usize = 8 << 20;
/// Where the cache mode is, in the page of the stamp.
const CACHE_AT: usize = 1024;
/// Where it says what is being changed, in the page of the stamp.
const CHANGING_AT: usize = 2048;
/// Bytes that are mapped for words beside the stamp.
const PAGE: usize = 4096;
// Panics: the compiler, which looks at it.
const _: () = assert!(CHANGING_AT + CHANGING * LINE <= PAGE);
// Panics: as above.
const _: () = assert!(REDO_AT + redo::LEN <= STATES_AT);
/// `TMPFS_MAGIC` of linux/magic.h.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Whether a disk's writes are durable when they complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMode {
    /// Only after a flush.
    WriteBack,
    /// Yes.
    WriteThrough,
}

/// The opened file of a current map.
#[derive(Debug)]
pub struct RuntimeMap {
    file: File,
}

/// What is found where a disk's runtime map is to be.
#[derive(Debug)]
pub enum Found {
    /// The disk's: it has what a process that died had not flushed.
    Counts(RuntimeMap),
    /// That of this attach and of another layer. It counts for nothing but its cache mode, if that layer
    /// was the disk's top one until it was frozen: all that was completed was made durable before.
    OfLayer(Uuid, RuntimeMap),
    /// Nothing.
    Missing,
    /// Something else: why it is not the disk's, as the end of a sentence.
    Foreign(&'static str),
}

impl RuntimeMap {
    /// Opens the runtime map at `path`, or makes an empty one when there is none that counts for
    /// the disk as last attached with `previous`, and stamps it with `next`. The boolean tells
    /// whether it holds what a process that died had not flushed.
    ///
    /// The caller writes `next` into the disk's header afterwards.
    ///
    /// # Errors
    /// [`VolumeError::NotTmpfs`], or [`VolumeError::File`] when it cannot be made.
    pub fn open(
        path: &Path,
        geometry: &Geometry,
        previous: Uuid,
        next: Uuid,
    ) -> Result<(Self, bool), VolumeError> {
        Self::open_with(path, geometry, [previous, next], None)
    }

    /// As [`RuntimeMap::open`] with the attach ids before and from now on, and with a cache mode that the
    /// map gets, if one is given, before it counts.
    ///
    /// # Errors
    /// As [`RuntimeMap::open`].
    pub fn open_with(
        path: &Path,
        geometry: &Geometry,
        [previous, next]: [Uuid; 2],
        cache: Option<CacheMode>,
    ) -> Result<(Self, bool), VolumeError> {
        let fail = |what| {
            move |source| VolumeError::File {
                what,
                path: path.to_owned(),
                source,
            }
        };
        let keep = |map: &Self| cache.map_or(Ok(()), |cache| map.set_cache(cache));
        if let Some(found) = Self::find(path, geometry, previous)? {
            keep(&found)?;
            found.fit(geometry, [next, previous])?;
            return Ok((found, true));
        }
        // Made under another name, so that a crash leaves no half-made map in its place.
        let made = path.with_extension("new");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&made)
            .map_err(fail("create"))?;
        let kind = fstatfs(&file)
            .map_err(|e| fail("examine")(e.into()))?
            .f_type as u64;
        if kind != TMPFS_MAGIC {
            let _ = std::fs::remove_file(&made);
            return Err(VolumeError::NotTmpfs {
                path: path.to_owned(),
            });
        }
        let map = Self { file };
        let filled = map
            .fit(geometry, [next, previous])
            .and_then(|()| keep(&map))
            .and_then(|()| std::fs::rename(&made, path).map_err(fail("name")));
        if let Err(error) = filled {
            let _ = std::fs::remove_file(&made);
            return Err(error);
        }
        Ok((map, false))
    }

    /// Makes the file long enough for the disk and stamps it.
    fn fit(&self, geometry: &Geometry, attach_ids: [Uuid; 2]) -> Result<(), VolumeError> {
        let len = file_len(geometry) as u64;
        let flags = FLAGS_AT as u64 + format::chunks(geometry.blocks()) * 8;
        let fits = || -> io::Result<()> {
            fallocate(&self.file, FallocateFlags::empty(), 0, flags)?;
            match self.file.metadata()?.len() < len {
                true => self.file.set_len(len),
                false => Ok(()),
            }
        };
        fits()
            .and_then(|()| self.file.write_all_at(&stamp(geometry, attach_ids)?, 0))
            .map_err(|source| VolumeError::Io {
                what: "make and stamp the runtime map",
                source,
            })
    }

    /// Makes the map of an attached disk ready for the size that `geometry` has now, which its
    /// header says already. The old size can be served meanwhile.
    ///
    /// # Errors
    /// [`VolumeError::Io`]; the map serves the old size as before then.
    pub fn grow(&self, geometry: &Geometry) -> Result<(), VolumeError> {
        let mut start = [0; STAMP_LEN];
        self.file
            .read_exact_at(&mut start, 0)
            .map_err(|source| VolumeError::Io {
                what: "read the runtime map",
                source,
            })?;
        self.fit(geometry, [uuid_at(&start, 72), uuid_at(&start, 88)])
    }

    /// A second handle of it.
    ///
    /// # Errors
    /// [`VolumeError::Io`].
    pub fn try_clone(&self) -> Result<Self, VolumeError> {
        let file = self.file.try_clone().map_err(|source| VolumeError::Io {
            what: "duplicate a file descriptor",
            source,
        })?;
        Ok(Self { file })
    }

    /// The runtime map at `path`, if there is one that counts for the disk as last attached with
    /// `attach`. The caller has claimed the disk.
    ///
    /// # Errors
    /// As [`RuntimeMap::look`].
    pub fn find(
        path: &Path,
        geometry: &Geometry,
        attach: Uuid,
    ) -> Result<Option<Self>, VolumeError> {
        Ok(match Self::look(path, geometry, attach)? {
            Found::Counts(map) => Some(map),
            Found::OfLayer(..) | Found::Missing | Found::Foreign(_) => None,
        })
    }

    /// What is at `path`, for the disk as last attached with `attach`. The caller has claimed the disk.
    ///
    /// # Errors
    /// [`VolumeError::File`] when something is there and cannot be read; [`VolumeError::RuntimeVersion`].
    pub fn look(path: &Path, geometry: &Geometry, attach: Uuid) -> Result<Found, VolumeError> {
        let fail = |source| VolumeError::File {
            what: "read",
            path: path.to_owned(),
            source,
        };
        let file = match open_map(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
            Err(e) => return Err(fail(e)),
        };
        let metadata = file.metadata().map_err(fail)?;
        let len = metadata.len();
        if !metadata.is_file() || len < STAMP_LEN as u64 {
            return Ok(Found::Foreign("is no runtime map"));
        }
        let mut start = [0; STAMP_LEN];
        file.read_exact_at(&mut start, 0).map_err(fail)?;
        let ids = [uuid_at(&start, 72), uuid_at(&start, 88)];
        let stamped = Geometry {
            disk: uuid_at(&start, 16),
            layer: uuid_at(&start, 32),
            size: u64_at(&start, 48),
            ..geometry.clone()
        };
        if start.starts_with(SIGNATURE) && start[8] != VERSION && ids.contains(&attach) {
            return Err(VolumeError::RuntimeVersion {
                path: path.to_owned(),
                found: start[8],
            });
        }
        let boot = boot_id().map_err(fail)?;
        if start != stamp_of(&stamped, ids, uuid_at(&start, 56)) {
            return Ok(Found::Foreign("is damaged, or no runtime map"));
        }
        if uuid_at(&start, 56) != boot {
            return Ok(Found::Foreign("is of another boot of the kernel"));
        }
        if !ids.contains(&attach) {
            return Ok(Found::Foreign("is of another attach"));
        }
        let found = Self { file };
        if stamped.layer != geometry.layer {
            return Ok(Found::OfLayer(stamped.layer, found));
        }
        if stamped.disk != geometry.disk || stamped.size > geometry.size {
            return Ok(Found::Foreign("is of another disk"));
        }
        if len < file_len(&stamped) as u64 {
            return Ok(Found::Foreign("was cut off"));
        }
        match found.words(&stamped) {
            Ok(_) => {}
            Err(VolumeError::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidData => {
                return Ok(Found::Foreign("is damaged"));
            }
            Err(error) => return Err(error),
        }
        if stamped.size < geometry.size {
            found.fit(geometry, ids)?;
        }
        Ok(Found::Counts(found))
    }

    /// The cache mode that the guest chose last, if it is known here.
    ///
    /// # Errors
    /// [`VolumeError::Io`].
    pub fn cache(&self) -> Result<Option<CacheMode>, VolumeError> {
        let page = self.stamp_page()?;
        Ok(match page.words(CACHE_AT, 1)[0].load(Ordering::Acquire) {
            1 => Some(CacheMode::WriteBack),
            2 => Some(CacheMode::WriteThrough),
            _ => None,
        })
    }

    /// Keeps the cache mode that the guest chooses. It outlives this process when this returns.
    ///
    /// # Errors
    /// [`VolumeError::Io`].
    pub fn set_cache(&self, cache: CacheMode) -> Result<(), VolumeError> {
        let word = match cache {
            CacheMode::WriteBack => 1,
            CacheMode::WriteThrough => 2,
        };
        self.stamp_page()?.words(CACHE_AT, 1)[0].store(word, Ordering::Release);
        Ok(())
    }

    /// Takes back that a cache mode was chosen.
    ///
    /// # Errors
    /// [`VolumeError::Io`].
    pub fn forget_cache(&self) -> Result<(), VolumeError> {
        self.stamp_page()?.words(CACHE_AT, 1)[0].store(0, Ordering::Release);
        Ok(())
    }

    /// The page of the stamp, which has memory from the beginning.
    fn stamp_page(&self) -> Result<Mapped, VolumeError> {
        let fail = |source| VolumeError::Io {
            what: "map the runtime map",
            source,
        };
        // Behind the end of a file that was cut off there is nothing to map.
        if self.file.metadata().map_err(fail)?.len() < PAGE as u64 {
            return Err(fail(io::ErrorKind::InvalidData.into()));
        }
        Mapped::file(&self.file, PAGE).map_err(fail)
    }

    /// The runtime map at `path` that is stamped for the layer of any disk of id `disk`, to be looked at
    /// without claiming the disk.
    pub fn peek(path: &Path, layer: Uuid) -> Option<Self> {
        let file = open_map(path).ok()?;
        let mut start = [0; STAMP_LEN];
        file.read_exact_at(&mut start, 0).ok()?;
        let is_map = start.starts_with(SIGNATURE) && uuid_at(&start, 32) == layer;
        is_map.then_some(Self { file })
    }

    /// The sync that has failed while the disk was attached with this map, if one has.
    ///
    /// # Errors
    /// [`VolumeError::Io`].
    pub fn failed_sync(&self) -> Result<Option<FailedSync>, VolumeError> {
        let mut word = [0; 8];
        let read = self.file.read_exact_at(&mut word, FAILED_SYNC_AT as u64);
        read.map_err(|source| VolumeError::Io {
            what: "read the runtime map",
            source,
        })?;
        Ok(FailedSync::from_word(u64::from_ne_bytes(word)))
    }

    /// Notes a sync that has failed, which the disk's header knows of: no flush succeeds with this map.
    ///
    /// # Errors
    /// [`VolumeError::Io`].
    pub fn note_failed_sync(&self, file: FailedSync) -> Result<(), VolumeError> {
        let word = file.word().to_ne_bytes();
        let written = self.file.write_all_at(&word, FAILED_SYNC_AT as u64);
        written.map_err(|source| VolumeError::Io {
            what: "write to the runtime map",
            source,
        })
    }

    /// Takes back that a sync has failed, since the disk was checked. The disk must not be served meanwhile. The
    /// next volume that is opened on this map writes the whole map file again.
    ///
    /// # Errors
    /// [`VolumeError::Io`].
    pub fn forget_failed_sync(&self) -> Result<(), VolumeError> {
        if self.failed_sync()?.is_none() {
            return Ok(());
        }
        let word = CHECKED.to_ne_bytes();
        let written = self.file.write_all_at(&word, FAILED_SYNC_AT as u64);
        written.map_err(|source| VolumeError::Io {
            what: "write to the runtime map",
            source,
        })
    }

    /// Takes over a file that another process opened with [`RuntimeMap::open`].
    pub fn from_file(file: File) -> Self {
        Self { file }
    }

    /// The words of the map of a disk. One that was cut off or damaged is `InvalidData`.
    pub(super) fn words(&self, geometry: &Geometry) -> Result<MapWords, VolumeError> {
        let fail = |source| VolumeError::Io {
            what: "map the runtime map",
            source,
        };
        let len = file_len(geometry);
        if self.file.metadata().map_err(fail)?.len() < len as u64 {
            return Err(fail(io::ErrorKind::InvalidData.into()));
        }
        let mapped = Mapped::file(&self.file, len).map_err(fail)?;
        let chunks = format::chunks(geometry.blocks()) as usize;
        let words = |at, count| Words { at, count };
        let parts = MapParts {
            failed_sync: FAILED_SYNC_AT,
            changing: CHANGING_AT,
            flags: words(FLAGS_AT, chunks),
            dirty: words(DIRTY_AT, chunks * NOTE_WORDS),
            flushing: words(FLUSHING_AT, chunks * NOTE_WORDS),
            redo: Some(REDO_AT),
            states: words(STATES_AT, BlockMap::words_for(geometry.blocks())),
        };
        let words = MapWords::mapped(mapped, parts);
        self.unfinished(geometry)?;
        match is_sound(&words) {
            true => Ok(words),
            false => Err(fail(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Finishes writes into a data file that is memory, which a process was copying there when it died; how many
    /// there were. The disk must be claimed and not be served. To be done before anything is read from it or
    /// written to it.
    ///
    /// # Errors
    /// [`VolumeError::Io`]; what was not finished still can be.
    pub fn finish_writes(&self, geometry: &Geometry, data: &File) -> Result<usize, VolumeError> {
        /// As direct I/O wants it.
        #[repr(align(4096))]
        struct Aligned([u8; BLOCK_SIZE as usize]);
        let all = self.unfinished(geometry)?;
        let mut content = Aligned([0; BLOCK_SIZE as usize]);
        for Unfinished { slot, at, len } in &all {
            let content = &mut content.0[..*len];
            let block = REDO_AT + redo::block_at(*slot);
            let word = REDO_AT + slot * LINE;
            let copied = self
                .file
                .read_exact_at(content, block as u64)
                .and_then(|()| data.write_all_at(content, at.0))
                .and_then(|()| self.file.write_all_at(&[0; 8], word as u64));
            copied.map_err(|source| VolumeError::Io {
                what: "finish a write into the data file that a process which died had begun",
                source,
            })?;
        }
        Ok(all.len())
    }

    /// Whether there are writes that are to be finished first.
    ///
    /// # Errors
    /// [`VolumeError::Io`].
    pub fn has_unfinished(&self, geometry: &Geometry) -> Result<bool, VolumeError> {
        Ok(!self.unfinished(geometry)?.is_empty())
    }

    /// The writes that the slots name. Where one names what it cannot, that is `InvalidData`.
    fn unfinished(&self, geometry: &Geometry) -> Result<Vec<Unfinished>, VolumeError> {
        let mut words = vec![0; redo::WORDS_LEN];
        self.file
            .read_exact_at(&mut words, REDO_AT as u64)
            .and_then(|()| Unfinished::all(&words, geometry.size))
            .map_err(|source| VolumeError::Io {
                what: "read the runtime map",
                source,
            })
    }
}

/// To be given to another process.
impl AsFd for RuntimeMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for RuntimeMap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn file_len(geometry: &Geometry) -> usize {
    STATES_AT + BlockMap::words_for(geometry.blocks()) * 8
}

/// Opens what is at a path that a header names: nothing that blocks, and no link to something else.
fn open_map(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

/// The id of the kernel's boot, which changes with the loss of power.
///
/// # Errors
/// When `/proc` does not tell.
pub fn boot_id() -> io::Result<Uuid> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Uuid::parse_str(boot.trim()).map_err(io::Error::other)
}

fn stamp(geometry: &Geometry, attach_ids: [Uuid; 2]) -> io::Result<[u8; STAMP_LEN]> {
    Ok(stamp_of(geometry, attach_ids, boot_id()?))
}

fn stamp_of(geometry: &Geometry, attach_ids: [Uuid; 2], boot: Uuid) -> [u8; STAMP_LEN] {
    let mut bytes = [0; STAMP_LEN];
    bytes[..8].copy_from_slice(SIGNATURE);
    bytes[8] = VERSION;
    bytes[16..32].copy_from_slice(geometry.disk.as_bytes());
    bytes[32..48].copy_from_slice(geometry.layer.as_bytes());
    bytes[48..56].copy_from_slice(&geometry.size.to_le_bytes());
    bytes[56..72].copy_from_slice(boot.as_bytes());
    bytes[72..88].copy_from_slice(attach_ids[0].as_bytes());
    bytes[88..104].copy_from_slice(attach_ids[1].as_bytes());
    let sum = crc32c::crc32c(&bytes[..104]);
    bytes[104..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[at..at + 16]);
    Uuid::from_bytes(id)
}
