//! Maps of frozen layers as the pages of their files: all disks of a host that use one image have them in common, and
//! none has a copy in memory of its own.
//!
//! What is read from such a page was verified as what is copied is, and stays so: the page is locked, so that it is
//! not given up and read anew. Locking also finds a page that the storage does not give, where touching it
//! would end the process (SIGBUS); a chunk that cannot be locked is copied. How much a process may lock is told by
//! [`share_maps_up_to`]; one that was told nothing shares nothing.
//!
//! A frozen map changes only while a merge adds blocks to it, whose data is durable by then. It writes through the same
//! pages. A state lies within a byte, so a reader finds the one before or the one after, and either is true as long
//! as the layer beneath is there. Nobody makes a map shorter; of one that somebody shortens all the same the touched
//! page ends the process, and the next one refuses the file for its length.

use std::fs::File;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rustix::mm::{MapFlags, MlockFlags, ProtFlags, mlock_with, mmap, munlock, munmap};

use crate::format::{HEADER_LEN, SECTOR_LEN};

/// Bytes of map files that this process may still lock.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// Lets this process lock so many bytes of map files, more than it has locked otherwise.
pub fn share_maps_up_to(bytes: u64) {
    LEFT.store(bytes, Ordering::Relaxed);
}

/// The mapping of a whole map file, of which the chunks can be read that are held.
pub(super) struct FrozenMap {
    ptr: NonNull<u8>,
    len: usize,
    /// Bytes that are locked.
    held: AtomicU64,
}

// SAFETY: the mapping is only read, as atomics, which may be shared between threads.
unsafe impl Send for FrozenMap {}
// SAFETY: as above.
unsafe impl Sync for FrozenMap {}

impl FrozenMap {
    /// Maps the first `len` bytes of a map file. `None` where nothing of it can be held.
    pub(super) fn of(file: &File, len: u64) -> Option<Self> {
        let page = rustix::param::page_size();
        // Chunks begin where a page does, so that each is locked by itself.
        if LEFT.load(Ordering::Relaxed) == 0 || !HEADER_LEN.is_multiple_of(page) {
            return None;
        }
        let len = usize::try_from(len).ok()?;
        let start = ptr::null_mut();
        // SAFETY: a new mapping at an address that the kernel chooses aliases nothing of ours.
        let raw = unsafe { mmap(start, len, ProtFlags::READ, MapFlags::SHARED, file, 0) };
        Some(Self {
            ptr: NonNull::new(raw.ok()?.cast())?,
            len,
            held: AtomicU64::new(0),
        })
    }

    /// Locks the bytes of a chunk, which begins at byte `at`, if they are those that were `verified`; whether they are.
    pub(super) fn hold(&self, at: u64, verified: &[u8]) -> bool {
        let len = verified.len();
        let Some(at) = usize::try_from(at).ok().filter(|at| at + len <= self.len) else {
            return false;
        };
        let locked = len.next_multiple_of(rustix::param::page_size()) as u64;
        let less = |left: u64| left.checked_sub(locked);
        let taken = LEFT.try_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if taken.is_err() {
            return false;
        }
        // SAFETY: the range lies in the mapping (checked).
        let start = unsafe { self.ptr.as_ptr().add(at) };
        // SAFETY: the range is mapped; locking changes nothing of it.
        let is_locked = unsafe { mlock_with(start.cast(), len, MlockFlags::empty()) }.is_ok();
        if is_locked && self.has(at, verified) {
            self.held.fetch_add(locked, Ordering::Relaxed);
            return true;
        }
        // Of a range of which only some pages could be locked, those are. Should it fail, they stay so.
        // SAFETY: as above.
        let _ = unsafe { munlock(start.cast(), len) };
        LEFT.fetch_add(locked, Ordering::Relaxed);
        false
    }

    /// Whether the bytes from `at` on, which are locked, are these.
    fn has(&self, at: usize, bytes: &[u8]) -> bool {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut words = words.iter().enumerate();
        rest.is_empty() && words.all(|(i, word)| self.load(at + i * 8) == u64::from_le_bytes(*word))
    }

    /// A word of the states of a map sector, whose chunk is held.
    pub(super) fn word(&self, sector: u64, word: u64) -> u64 {
        let at = HEADER_LEN as u64 + sector * SECTOR_LEN as u64 + word * 8;
        let word = self.load(at as usize);
        fence(Ordering::Acquire);
        word
    }

    fn load(&self, at: usize) -> u64 {
        // Panics: for a fault of ours; offsets come from the geometry of the map, not from a guest.
        assert!(
            at.is_multiple_of(8) && at + 8 <= self.len,
            "words behind the mapping"
        );
        // SAFETY: the word lies in the mapping and is aligned (asserted), and its page is locked. It may be changed by
        // another process, as an atomic may. Atomics in memory that cannot be written are for relaxed loads only.
        let word = unsafe { &*self.ptr.as_ptr().add(at).cast::<AtomicU64>() };
        u64::from_le(word.load(Ordering::Relaxed))
    }
}

impl Drop for FrozenMap {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `of` with this length, and nobody has a reference into it.
        let _ = unsafe { munmap(self.ptr.as_ptr().cast(), self.len) };
        LEFT.fetch_add(*self.held.get_mut(), Ordering::Relaxed);
    }
}
