//! Map words in memory: private to the process, or a mapped file that outlives it.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A shared mapping of a whole file.
pub(super) struct MappedFile {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is only reached as atomics, which may be shared between threads.
unsafe impl Send for MappedFile {}
// SAFETY: as above.
unsafe impl Sync for MappedFile {}

impl MappedFile {
    /// Maps `len` bytes of `file`, whose space must have been allocated: a hole that cannot be
    /// filled when it is touched would kill the process.
    pub(super) fn new(file: &File, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses aliases nothing of ours.
        let raw = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        let ptr = NonNull::new(raw.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { ptr, len })
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

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length and no borrow of it is left.
        let _ = unsafe { munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

/// Where the words of the current map are.
pub(super) enum MapWords {
    /// In the process alone: what is not flushed dies with it.
    Private(Box<[AtomicU64]>),
    /// In a file on tmpfs, from byte `.1` on.
    Mapped(MappedFile, usize, usize),
}

impl MapWords {
    /// `count` zero words in private memory.
    pub(super) fn private(count: usize) -> Self {
        Self::Private((0..count).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn get(&self) -> &[AtomicU64] {
        match self {
            Self::Private(words) => words,
            Self::Mapped(file, at, count) => file.words(*at, *count),
        }
    }
}
