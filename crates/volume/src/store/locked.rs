//! Memory that the kernel keeps in place, of which an ordinary user may have so much (`RLIMIT_MEMLOCK`).
//!
//! Locked pages, those of keys and stacks, count for their process. What io_uring has counts for the user:
//! all processes that run as the same one share the limit. These are buffers that are registered with a
//! ring, and, with newer kernels, the rings. Without a ring nothing is served, while an unregistered buffer
//! only costs some time; so buffers leave room for rings.

use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, MlockFlags, ProtFlags, mlock_with, mmap_anonymous, munmap};
use rustix::process::{Resource, getrlimit};

/// What the kernel counts for a ring of this store, and some more: Linux 6.18 counts 28 KiB.
const RING: u64 = 32 << 10;

/// Bytes that buffers may still take.
static LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Bytes that this process may lock at most; `None` where that is not limited. It must have been asked
/// once before the process confines itself.
pub fn locked_memory_limit() -> Option<u64> {
    static LIMIT: OnceLock<Option<u64>> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let most = getrlimit(Resource::Memlock).current?;
        (!is_exempt(most)).then_some(most)
    })
}

/// Keeps the locked memory of so many rings free of buffers, from now on.
pub fn keep_for_rings(rings: u64) {
    let left = locked_memory_limit().map_or(u64::MAX, |most| most.saturating_sub(rings * RING));
    LEFT.store(left, Ordering::Relaxed);
}

/// Whether this process may lock more than `most` bytes. What the process is said to be capable of doesn't
/// tell: in a user namespace of its own the limit holds all the same.
fn is_exempt(most: u64) -> bool {
    let page = rustix::param::page_size();
    let Some(len) = usize::try_from(most).ok().and_then(|most| {
        let beyond = most.checked_add(1)?;
        beyond.checked_next_multiple_of(page)
    }) else {
        return true;
    };
    // SAFETY: a fresh anonymous mapping at an address that the kernel chooses aliases nothing.
    let memory = unsafe {
        mmap_anonymous(
            ptr::null_mut(),
            len,
            ProtFlags::empty(),
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    };
    let Ok(memory) = memory else {
        return false;
    };
    // SAFETY: the range is the mapping just made; with this flag none of it takes memory.
    let locked = unsafe { mlock_with(memory, len, MlockFlags::ONFAULT) };
    // SAFETY: as above, and nobody has a reference into it. Should it fail, address space is lost.
    let _ = unsafe { munmap(memory, len) };
    locked.is_ok()
}

/// Memory of buffers that the kernel keeps in place, until this is dropped.
pub(super) struct Pinned(u64);

impl Pinned {
    /// Counts `len` bytes; `None` when the rings need what is left.
    pub(super) fn new(len: usize) -> Option<Self> {
        let len = len as u64;
        let less = |left: u64| left.checked_sub(len);
        let taken = LEFT.try_update(Ordering::Relaxed, Ordering::Relaxed, less);
        taken.is_ok().then(|| Self(len))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        LEFT.fetch_add(self.0, Ordering::Relaxed);
    }
}
