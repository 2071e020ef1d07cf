//! Map words in memory: private to the process, or a mapped file that outlives it. Neither takes
//! memory before it is touched.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::format::SECTORS_PER_CHUNK;

/// A mapping of words that are all zero at first, or of a whole file.
pub struct Mapped {
    ptr: NonNull<u8>,
    len: usize,
    /// What is mapped; nothing for private memory.
    file: Option<File>,
}

// SAFETY: the mapping is only reached as atomics, which may be shared between threads.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps `len` bytes of `file`. Before a range of it is touched, it must be known to be there, as `allocate` says it:
    /// a hole that cannot be filled would kill the process.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn file(file: &File, len: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let start = std::ptr::null_mut();
        // SAFETY: a new mapping at an address that the kernel chooses aliases nothing of ours.
        let raw = unsafe { mmap(start, len, access, MapFlags::SHARED, file, 0) }?;
        Ok(Self {
            ptr: NonNull::new(raw.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            len,
            file: Some(file.try_clone()?),
        })
    }

    /// Maps `len` bytes of zeros that nobody else sees.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn private(len: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: as in `file`.
        let raw = unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, flags) }?;
        Ok(Self {
            ptr: NonNull::new(raw.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            len,
            file: None,
        })
    }

    /// Has memory for the bytes from `at` on, also behind the end of a file, which stays where it is.
    pub(super) fn allocate(&self, at: usize, len: usize) -> io::Result<()> {
        match &self.file {
            Some(file) => Ok(fallocate(
                file,
                FallocateFlags::KEEP_SIZE,
                at as u64,
                len as u64,
            )?),
            // An ordinary page fault.
            None => Ok(()),
        }
    }

    /// The `count` words from byte `at` on; `at` is a multiple of 8.
    ///
    /// # Panics
    /// When they are not all in the mapping.
    #[inline]
    pub fn words(&self, at: usize, count: usize) -> &[AtomicU64] {
        // Panics: for a fault of ours; offsets come from the geometry of the map, not from a guest.
        assert!(
            at.is_multiple_of(8) && at + count * 8 <= self.len,
            "words behind the mapping"
        );
        // SAFETY: the range lies in the mapping (asserted), is aligned to 8 since the mapping is
        // aligned to a page, and atomics may change under a shared reference, as they do when
        // another process has the file mapped.
        unsafe {
            std::slice::from_raw_parts(
                self.ptr.as_ptr().wrapping_add(at).cast::<AtomicU64>(),
                count,
            )
        }
    }

    /// The `N` words from byte `at` on, for as long as they are held; `at` is a multiple of 8. Where they lie is looked at
    /// once, so that a word whose index the compiler knows to be below `N` is a single access to memory.
    ///
    /// # Panics
    /// As [`words`](Self::words).
    pub fn held<const N: usize>(self: &Arc<Self>, at: usize) -> HeldWords<N> {
        let words = self.words(at, N);
        HeldWords {
            words: NonNull::from(words).cast(),
            _mapped: self.clone(),
        }
    }

    /// The address of the `len` bytes from `at` on.
    pub(super) fn bytes(&self, at: usize, len: usize) -> NonNull<u8> {
        // Panics: as in `words`.
        assert!(at + len <= self.len, "bytes behind the mapping");
        // SAFETY: `at` lies in the mapping (asserted).
        unsafe { self.ptr.add(at) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping was made above with this length and no borrow of it is left.
        let _ = unsafe { munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

/// `N` words of a mapping, which stays as long as they are held.
pub struct HeldWords<const N: usize> {
    words: NonNull<[AtomicU64; N]>,
    _mapped: Arc<Mapped>,
}

// SAFETY: they are only reached as atomics, and the mapping may be shared between threads.
unsafe impl<const N: usize> Send for HeldWords<N> {}
// SAFETY: as above.
unsafe impl<const N: usize> Sync for HeldWords<N> {}

impl<const N: usize> Deref for HeldWords<N> {
    type Target = [AtomicU64; N];

    #[inline]
    fn deref(&self) -> &[AtomicU64; N] {
        // SAFETY: `Mapped::held` had them as a slice of `N` words, and the mapping that they lie in is kept.
        unsafe { self.words.as_ref() }
    }
}

/// Where a run of words starts, in bytes, and how many there are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words {
    pub(super) at: usize,
    pub(super) count: usize,
}

/// Where the parts of a map lie in its memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct MapParts {
    /// The word that says whether a sync has failed.
    pub(super) failed_sync: usize,
    /// Where the words start that say what is being changed, each in a line of its own.
    pub(super) changing: usize,
    /// For each chunk a word that says how far it is loaded.
    pub(super) flags: Words,
    /// A bit for each sector that a flush has to write.
    pub(super) dirty: Words,
    /// A bit for each sector that a flush is writing.
    pub(super) flushing: Words,
    /// Where the slots of writes into the data file start; nothing where they would end with the process.
    pub(super) redo: Option<usize>,
    /// The states.
    pub(super) states: Words,
}

impl MapParts {
    /// One behind the other.
    fn packed(chunks: usize, states: usize) -> Self {
        let mut end = 8;
        let mut take = |count: usize| {
            let at = end;
            end += count * 8;
            Words { at, count }
        };
        Self {
            failed_sync: 0,
            changing: take(CHANGING * LINE / 8).at,
            flags: take(chunks),
            dirty: take(chunks * NOTE_WORDS),
            flushing: take(chunks * NOTE_WORDS),
            redo: None,
            states: take(states),
        }
    }
}

/// Words that say what is being changed.
pub(super) const CHANGING: usize = 32;
/// Bytes of a line of the cache, so that threads that have each their word don't take it from each other.
pub(super) const LINE: usize = 64;

/// Words of a set of sectors that belong to one chunk: a bit for each of its sectors.
pub(super) const NOTE_WORDS: usize = (SECTORS_PER_CHUNK / 64) as usize;

/// The memory of a map.
pub(super) struct MapWords {
    mapped: Mapped,
    parts: MapParts,
}

impl MapWords {
    /// Of `chunks` chunks and `states` words, all zero, in private memory.
    pub(super) fn private(chunks: usize, states: usize) -> io::Result<Self> {
        let parts = MapParts::packed(chunks, states);
        Ok(Self {
            mapped: Mapped::private(parts.states.at + states * 8)?,
            parts,
        })
    }

    /// In a file.
    pub(super) fn mapped(mapped: Mapped, parts: MapParts) -> Self {
        Self { mapped, parts }
    }

    /// As [`FailedSync`](super::FailedSync) has it.
    pub(super) fn failed_sync(&self) -> &AtomicU64 {
        &self.mapped.words(self.parts.failed_sync, 1)[0]
    }

    /// One of the words that say what is being changed.
    pub(super) fn changing(&self, place: usize) -> &AtomicU64 {
        &self.mapped.words(self.parts.changing + place * LINE, 1)[0]
    }

    pub(super) fn flags(&self) -> &[AtomicU64] {
        self.part(self.parts.flags)
    }

    /// Only those of a chunk that was loaded may be touched, of this and of all that follow.
    pub(super) fn dirty(&self) -> &[AtomicU64] {
        self.part(self.parts.dirty)
    }

    pub(super) fn flushing(&self) -> &[AtomicU64] {
        self.part(self.parts.flushing)
    }

    pub(super) fn states(&self) -> &[AtomicU64] {
        self.part(self.parts.states)
    }

    /// All of it.
    pub(super) fn memory(&self) -> &Mapped {
        &self.mapped
    }

    /// Where the slots of writes into the data file start; nothing where they would end with the process.
    pub(super) fn redo(&self) -> Option<usize> {
        self.parts.redo
    }

    fn part(&self, part: Words) -> &[AtomicU64] {
        self.mapped.words(part.at, part.count)
    }

    /// Has memory for what is kept of a chunk: its states, of which there are `states`, and its bits.
    pub(super) fn allocate(&self, chunk: usize, states: usize) -> io::Result<()> {
        let MapParts {
            dirty, flushing, ..
        } = self.parts;
        for (part, count) in [
            (dirty, NOTE_WORDS),
            (flushing, NOTE_WORDS),
            (self.parts.states, states),
        ] {
            self.mapped
                .allocate(part.at + chunk * count * 8, count * 8)?;
        }
        Ok(())
    }
}
