//! Page-aligned buffers for ciphertext, made once per queue.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::StoreError;

/// The memory of all buffers of a pool.
struct Region {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the region only owns the mapping; access goes through the buffers, each of which covers
// a part of its own.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `BufferPool::new` with this length. Every buffer holds an
        // Arc of the region, so none is left.
        let _ = unsafe { munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

/// One buffer of a pool: exclusive, aligned to 4096 bytes, holding ciphertext only.
pub struct IoBuffer {
    region: Arc<Region>,
    start: usize,
    len: usize,
}

impl IoBuffer {
    /// The whole buffer.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `start..start + len` lies in the region and belongs to this buffer alone.
        unsafe { std::slice::from_raw_parts(self.ptr(), self.len) }
    }

    /// The whole buffer, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; `&mut self` makes it unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(), self.len) }
    }

    /// Its address, for the kernel.
    pub(super) fn ptr(&self) -> *mut u8 {
        self.region.ptr.as_ptr().wrapping_add(self.start)
    }
}

/// A fixed number of buffers. When there is none left, the caller waits: no more are made.
pub struct BufferPool {
    free: Vec<IoBuffer>,
    buffer_len: usize,
    region: Arc<Region>,
}

impl BufferPool {
    /// Maps `count` buffers of `buffer_len` bytes, a multiple of 4096. Memory is taken by the
    /// kernel when a buffer is first used.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the memory cannot be mapped.
    pub fn new(count: usize, buffer_len: usize) -> Result<Self, StoreError> {
        let len = count * buffer_len;
        let fail = |source| StoreError::Io {
            what: "map memory for buffers",
            source,
        };
        let plain = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let map = |flags| {
            // SAFETY: a fresh anonymous mapping at an address that the kernel chooses aliases
            // nothing.
            unsafe {
                mmap_anonymous(
                    ptr::null_mut(),
                    len,
                    ProtFlags::READ | ProtFlags::WRITE,
                    flags,
                )
            }
        };
        // Huge pages where the host has set some aside, transparent ones elsewhere.
        let huge = MapFlags::PRIVATE | MapFlags::HUGETLB;
        let raw = match map(huge) {
            Ok(raw) => raw,
            Err(_) => {
                let raw = map(plain).map_err(|e| fail(e.into()))?;
                // SAFETY: the range is the mapping just made, and the advice changes no content. A
                // kernel without transparent huge pages refuses it, which does no harm.
                let _ = unsafe { madvise(raw, len, Advice::LinuxHugepage) };
                raw
            }
        };
        let ptr = NonNull::new(raw.cast())
            .ok_or_else(|| fail(io::Error::from(io::ErrorKind::OutOfMemory)))?;
        let region = Arc::new(Region { ptr, len });
        let buffer = |i| IoBuffer {
            region: region.clone(),
            start: i * buffer_len,
            len: buffer_len,
        };
        Ok(Self {
            free: (0..count).rev().map(buffer).collect(),
            buffer_len,
            region: region.clone(),
        })
    }

    /// Address and length of the memory of all buffers, for the kernel.
    pub(super) fn memory(&self) -> (NonNull<u8>, usize) {
        (self.region.ptr, self.region.len)
    }

    /// Bytes of each buffer.
    pub fn buffer_len(&self) -> usize {
        self.buffer_len
    }

    /// A free buffer, the one used last first: it is the one most likely to be in a cache.
    pub fn take(&mut self) -> Option<IoBuffer> {
        self.free.pop()
    }

    /// Gives a buffer back.
    pub fn put(&mut self, buffer: IoBuffer) {
        self.free.push(buffer);
    }
}
