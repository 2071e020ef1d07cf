//! Map words in memory: private to the process, or a mapped file that outlives it. Neither takes
//! memory before it is touched.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// A mapping of words that are all zero at first, or of a whole file.
pub(super) struct Mapped {
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
    /// Maps `len` bytes of `file`. Before a range of it is touched, [`Mapped::allocate`] must have
    /// said that it is there: a hole that cannot be filled would kill the process.
    pub(super) fn file(file: &File, len: usize) -> io::Result<Self> {
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
    pub(super) fn private(len: usize) -> io::Result<Self> {
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
    pub(super) fn words(&self, at: usize, count: usize) -> &[AtomicU64] {
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
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping was made above with this length and no borrow of it is left.
        let _ = unsafe { munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

/// The memory of a map: a word that says whether a sync has failed, for each chunk a word that says how
/// far it is loaded, and the states.
pub(super) struct MapWords {
    mapped: Mapped,
    failed_sync: usize,
    flags: (usize, usize),
    states: (usize, usize),
}

impl MapWords {
    /// Of `chunks` chunks and `states` words, all zero, in private memory.
    pub(super) fn private(chunks: usize, states: usize) -> io::Result<Self> {
        Ok(Self {
            mapped: Mapped::private((1 + chunks + states) * 8)?,
            failed_sync: 0,
            flags: (8, chunks),
            states: (8 + chunks * 8, states),
        })
    }

    /// In a file: the word of failed syncs at byte `failed_sync`, `chunks` flags from byte `flags_at`
    /// on, `states` words from byte `states_at` on.
    pub(super) fn mapped(
        mapped: Mapped,
        failed_sync: usize,
        (flags_at, chunks): (usize, usize),
        (states_at, states): (usize, usize),
    ) -> Self {
        Self {
            mapped,
            failed_sync,
            flags: (flags_at, chunks),
            states: (states_at, states),
        }
    }

    /// As [`FailedSync`](super::FailedSync) has it.
    pub(super) fn failed_sync(&self) -> &AtomicU64 {
        &self.mapped.words(self.failed_sync, 1)[0]
    }

    pub(super) fn flags(&self) -> &[AtomicU64] {
        self.mapped.words(self.flags.0, self.flags.1)
    }

    pub(super) fn states(&self) -> &[AtomicU64] {
        self.mapped.words(self.states.0, self.states.1)
    }

    /// Has memory for `count` states from `first` on.
    pub(super) fn allocate(&self, first: usize, count: usize) -> io::Result<()> {
        self.mapped.allocate(self.states.0 + first * 8, count * 8)
    }
}
