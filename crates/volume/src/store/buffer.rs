//! Memory for ciphertext: mapped regions, and the page-aligned buffers cut from them.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use store_ring::{LaneMemory, Lent, SMALL_LEN};

/// Bytes of a buffer: a piece this large is still in the L2 cache when it is submitted.
pub const BUFFER_LEN: usize = store_ring::BUFFER_LEN;
/// Bytes by which a pool grows: a huge page.
pub const CHUNK_LEN: usize = store_ring::CHUNK_LEN;

/// Which pages buffers are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pages {
    /// Ordinary ones, which the kernel joins where it can.
    #[default]
    Ordinary,
    /// Those that the host has set aside (`vm.nr_hugepages`), while there are some.
    SetAside,
}

/// Where the memory of buffers comes from.
#[derive(Debug, Clone)]
pub enum BufferMemory {
    /// It is this process's own.
    Own(Pages),
    /// It is shared with a store process, which reads and writes ciphertext there.
    Shared(Arc<LaneMemory>),
}

impl From<Pages> for BufferMemory {
    fn from(pages: Pages) -> Self {
        Self::Own(pages)
    }
}

impl From<Arc<LaneMemory>> for BufferMemory {
    fn from(memory: Arc<LaneMemory>) -> Self {
        Self::Shared(memory)
    }
}

impl BufferMemory {
    /// `len` bytes that are there already: missing memory shows now.
    pub(super) fn populated(&self, len: usize) -> io::Result<Region> {
        match self {
            Self::Own(_) => Region::populated(len),
            Self::Shared(memory) if len <= SMALL_LEN => {
                let lent = memory.lend_small(len);
                Ok(Region::lent(lent.ok_or(io::ErrorKind::OutOfMemory)?, len))
            }
            Self::Shared(_) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// One chunk.
    pub(super) fn chunk(&self) -> io::Result<Region> {
        match self {
            Self::Own(pages) => Region::chunk(*pages),
            Self::Shared(memory) => {
                let lent = memory.lend_chunk();
                Ok(Region::lent(
                    lent.ok_or(io::ErrorKind::OutOfMemory)?,
                    CHUNK_LEN,
                ))
            }
        }
    }
}

/// Mapped memory of several buffers.
pub(super) struct Region {
    pub(super) ptr: NonNull<u8>,
    pub(super) len: usize,
    /// The part of shared memory that it is; else it is a mapping of its own.
    lent: Option<Lent>,
}

// SAFETY: the region only owns the mapping; access goes through the buffers, each of which covers
// a part of its own.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// No memory.
    pub(super) fn none() -> Self {
        Self {
            ptr: NonNull::dangling(),
            len: 0,
            lent: None,
        }
    }

    /// The first `len` bytes of a part of shared memory.
    fn lent(part: Lent, len: usize) -> Self {
        Self {
            ptr: part.start(),
            len: len.min(part.bytes()),
            lent: Some(part),
        }
    }

    fn map(len: usize, flags: MapFlags) -> io::Result<Self> {
        // SAFETY: a fresh anonymous mapping at an address that the kernel chooses aliases nothing.
        let raw = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | flags,
            )
        }?;
        let ptr = NonNull::new(raw.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let lent = None;
        Ok(Self { ptr, len, lent })
    }

    /// `len` bytes that are there already: missing memory shows now.
    fn populated(len: usize) -> io::Result<Self> {
        let region = Self::map(len, MapFlags::NORESERVE)?;
        let at = region.ptr.as_ptr().cast();
        // The kernel would count all of a huge page that a part of this is in as locked. One without huge
        // pages refuses it, which does no harm.
        // SAFETY: the range is the mapping just made, and the advice changes no content.
        let _ = unsafe { madvise(at, len, Advice::LinuxNoHugepage) };
        // SAFETY: as above, and nobody has a reference into it.
        unsafe { madvise(at, len, Advice::LinuxPopulateWrite) }?;
        Ok(region)
    }

    /// One chunk.
    fn chunk(pages: Pages) -> io::Result<Self> {
        if pages == Pages::SetAside
            && let Ok(region) = Self::map(CHUNK_LEN, MapFlags::HUGETLB)
        {
            return Ok(region);
        }
        let mut region = Self::map(2 * CHUNK_LEN, MapFlags::NORESERVE)?;
        region.align();
        // SAFETY: the range is the mapping just made, and the advice changes no content. A kernel
        // without transparent huge pages refuses it, which does no harm.
        let _ = unsafe { madvise(region.ptr.as_ptr().cast(), CHUNK_LEN, Advice::LinuxHugepage) };
        Ok(region)
    }

    /// Keeps the first chunk of a mapping of two that begins where a huge page can.
    fn align(&mut self) {
        let start = self.ptr.as_ptr();
        let before = start.align_offset(CHUNK_LEN);
        let kept = start.wrapping_add(before);
        let after = CHUNK_LEN - before;
        for (at, len) in [(start, before), (kept.wrapping_add(CHUNK_LEN), after)] {
            if len > 0 {
                // SAFETY: both are parts of the mapping that nobody has an address of. Should it fail,
                // address space is lost, and no memory.
                let _ = unsafe { munmap(at.cast(), len) };
            }
        }
        if let Some(kept) = NonNull::new(kept) {
            (self.ptr, self.len) = (kept, CHUNK_LEN);
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.len > 0 && self.lent.is_none() {
            // SAFETY: the mapping was made by `map`, and cut to this range at most. Every buffer holds an
            // Arc of the region, so none is left.
            let _ = unsafe { munmap(self.ptr.as_ptr().cast(), self.len) };
        }
    }
}

/// One buffer of a pool: exclusive, aligned to 4096 bytes, holding ciphertext only.
pub struct IoBuffer {
    pub(super) region: Arc<Region>,
    pub(super) start: usize,
    pub(super) len: usize,
    /// Which of the pool's chunks it is of.
    pub(super) chunk: usize,
    /// The number that the store knows that memory by, if it does.
    pub(super) slot: usize,
}

impl IoBuffer {
    /// The whole buffer.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the bytes from `start` on lie in the region and belong to this buffer alone.
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

    /// The number of the memory that it lies in, as the store was told; one that no memory has if not.
    pub(super) fn slot(&self) -> usize {
        self.slot
    }
}
