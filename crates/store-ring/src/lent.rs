//! The shared memory with what is lent of it.

use std::fmt;
use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::Advice;

use crate::entry::Data;
use crate::error::RingError;
use crate::layout::{CHUNK_LEN, Layout, SMALL_LEN};
use crate::memory::{SharedMemory, sealed_file};
use crate::sync::{AtomicU64, Ordering};

/// The memory that a data plane and a store process share, as one of them has it mapped.
pub struct LaneMemory {
    pub(crate) memory: SharedMemory,
    layout: Layout,
    /// Which places for good are lent.
    small: Places,
    /// Which chunks are.
    chunks: Places,
}

impl LaneMemory {
    /// Makes the memory, for both sides.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn make(layout: Layout) -> io::Result<File> {
        sealed_file(layout.bytes())
    }

    /// Maps it.
    ///
    /// # Errors
    /// [`RingError::Memory`], [`RingError::Io`].
    pub fn map(file: &File, layout: Layout) -> Result<Arc<Self>, RingError> {
        Ok(Arc::new(Self {
            memory: SharedMemory::map(file, layout.bytes())?,
            layout,
            small: Places::new(layout.small),
            chunks: Places::new(layout.chunks),
        }))
    }

    /// What there is.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// A place for buffers that are somebody's for good, of [`SMALL_LEN`] bytes, the first `populated` of which are there
    /// already; `None` when all are lent, or there is no memory.
    pub fn lend_small(self: &Arc<Self>, populated: usize) -> Option<Lent> {
        let lent = self.lend(Kind::Small)?;
        let populated = populated.min(SMALL_LEN);
        self.memory.populate(lent.at(), populated).ok()?;
        Some(lent)
    }

    /// A chunk of buffers, of [`CHUNK_LEN`] bytes; `None` when all are lent.
    pub fn lend_chunk(self: &Arc<Self>) -> Option<Lent> {
        let lent = self.lend(Kind::Chunk)?;
        self.memory
            .advise(lent.at(), CHUNK_LEN, Advice::LinuxHugepage);
        Some(lent)
    }

    fn lend(self: &Arc<Self>, kind: Kind) -> Option<Lent> {
        let number = self.places(kind).take()?;
        Some(Lent {
            memory: self.clone(),
            kind,
            number,
        })
    }

    fn places(&self, kind: Kind) -> &Places {
        match kind {
            Kind::Small => &self.small,
            Kind::Chunk => &self.chunks,
        }
    }

    /// The range of the memory that some bytes are, if they are of it.
    pub fn data_of(&self, start: *const u8, len: usize) -> Option<Data> {
        let at = self.memory.offset_of(start, len)?;
        Some(Data { at, len })
    }

    /// The address of a range that an operation names, for its [`Data::len`] bytes and as long as this memory is mapped.
    /// The other side may change what is there at any time.
    pub fn address_of(&self, data: Data) -> NonNull<u8> {
        self.memory.range(data.at, data.len)
    }
}

impl fmt::Debug for LaneMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaneMemory")
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

/// A part of the memory that is one owner's, until this is dropped.
pub struct Lent {
    memory: Arc<LaneMemory>,
    kind: Kind,
    number: u16,
}

/// Which part.
#[derive(Clone, Copy)]
enum Kind {
    Small,
    Chunk,
}

impl Lent {
    fn at(&self) -> usize {
        match self.kind {
            Kind::Small => self.memory.layout.small_at(self.number),
            Kind::Chunk => self.memory.layout.chunk_at(self.number),
        }
    }

    /// Where it begins.
    pub fn start(&self) -> NonNull<u8> {
        self.memory.memory.range(self.at(), self.bytes())
    }

    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        match self.kind {
            Kind::Small => SMALL_LEN,
            Kind::Chunk => CHUNK_LEN,
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.memory.memory.release(self.at(), self.bytes());
        self.memory.places(self.kind).give_back(self.number);
    }
}

/// Which of so many places are taken.
struct Places {
    count: u16,
    /// A bit for each.
    taken: Box<[AtomicU64]>,
}

impl Places {
    fn new(count: u16) -> Self {
        let words = usize::from(count).div_ceil(64);
        Self {
            count,
            taken: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// The first that is free.
    fn take(&self) -> Option<u16> {
        for (index, word) in self.taken.iter().enumerate() {
            let mut taken = word.load(Ordering::Relaxed);
            loop {
                let bit = taken.trailing_ones();
                let number = (index as u32 * 64).checked_add(bit)?;
                if bit == 64 || number >= u32::from(self.count) {
                    break;
                }
                // Whoever had it before is done with it.
                let taken_before = word.fetch_or(1 << bit, Ordering::Acquire);
                if taken_before & 1 << bit == 0 {
                    return u16::try_from(number).ok();
                }
                taken = taken_before;
            }
        }
        None
    }

    fn give_back(&self, number: u16) {
        let (index, bit) = (usize::from(number / 64), number % 64);
        if let Some(word) = self.taken.get(index) {
            word.fetch_and(!(1 << bit), Ordering::Release);
        }
    }
}
