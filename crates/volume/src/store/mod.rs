//! Where ciphertext lives: asynchronous reads, writes, syncs and hole punches on a layer's files.
//!
//! A [`Store`] belongs to one thread, as the queue does that it serves. It owns a buffer from
//! submission to completion, so nothing can touch memory that the kernel is working on. What is
//! above knows neither io_uring nor files: the tests run the same volume code on a simulated store
//! that loses, reorders and tears what was not synced.

#![deny(clippy::disallowed_types)]

use std::io;
use std::ptr::NonNull;
use std::time::Instant;

use keys::units::LayerIndex;

mod buffer;
mod error;
mod file;
mod holes;
mod locked;
mod mapping;
mod pause;
mod uring;

pub use buffer::{
    BUFFER_LEN, BufferBudget, BufferPool, CHUNK_LEN, IoBuffer, MOST_CHUNKS, OWN_BUFFERS, Pages,
};
pub use error::StoreError;
pub use file::{LayerFile, StackFiles};
pub use holes::{can_punch, next_extent, tells_holes};
pub use locked::{keep_for_rings, locked_memory_limit};
pub use mapping::DataMapping;
pub use uring::{UringStore, Wait, WatchId};

/// Names a submitted operation; chosen by the submitter, given back with the completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag(pub u32);

/// One of a disk's files. Those of the layers beneath the top are only read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreFile {
    /// The ciphertext of a layer, at the guest's own offsets.
    Data(LayerIndex),
    /// The block map of the top layer.
    Map,
}

impl StoreFile {
    /// The ciphertext of the layer that is written to.
    pub const TOP: Self = Self::Data(LayerIndex::TOP);
}

/// An operation. Offsets and lengths are bytes in the file and multiples of its alignment.
pub enum StoreOp {
    /// Fills the first `len` bytes of `buffer`.
    Read {
        /// The file.
        file: StoreFile,
        /// Byte offset in it.
        at: u64,
        /// Bytes to read.
        len: usize,
        /// Where they go.
        buffer: IoBuffer,
    },
    /// Writes the first `len` bytes of `buffer`. Not durable before a [`StoreOp::Sync`], unless it is to
    /// be by itself.
    Write {
        /// The file.
        file: StoreFile,
        /// Byte offset in it.
        at: u64,
        /// Bytes to write.
        len: usize,
        /// It is durable when it completes, as by `O_DSYNC`. Only where [`Store::writes_durably`].
        durable: bool,
        /// Where they are.
        buffer: IoBuffer,
    },
    /// Makes every write to the file that has completed before durable.
    Sync {
        /// The file.
        file: StoreFile,
    },
    /// Gives the space of a range of the top layer's data file back; it reads as zeros afterwards.
    Punch {
        /// Byte offset in the data file.
        at: u64,
        /// Bytes.
        len: u64,
    },
}

/// The end of an operation.
pub struct StoreCompletion {
    /// As submitted.
    pub tag: Tag,
    /// Whether all of it was done.
    pub result: Result<(), StoreError>,
    /// The buffer of a read or write.
    pub buffer: Option<IoBuffer>,
}

/// The storage of a disk's layers as one thread sees it.
pub trait Store {
    /// The granularity in bytes of offsets and lengths in all data files: a power of two, at most
    /// 4096.
    fn alignment(&self) -> u64;

    /// Tells memory of buffers that operations will name, before the first of them, by the number that
    /// the buffers have ([`MOST_CHUNKS`] at most). A store that can prepare for it does so.
    fn adopt(&mut self, _chunk: usize, _start: NonNull<u8>, _len: usize) {}

    /// Tells that no operation names buffers of that memory any more; none is under way.
    fn disown(&mut self, _chunk: usize) {}

    /// The address of `len` bytes of a layer's data file from `at` on, where the file is memory and
    /// mapped. It is good for as long as the store is, and to be written to in the top layer alone.
    /// Only to be used for blocks that have data.
    fn mapped(&self, _layer: LayerIndex, _at: u64, _len: usize) -> Option<NonNull<u8>> {
        None
    }

    /// Whether a write to the top layer's data file can be durable by itself, and fails for want of
    /// space before it changes anything: not through a page cache, whose write-back comes later.
    fn writes_durably(&self) -> bool {
        false
    }

    /// The time, for what is done in the background.
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// Whether one more operation can be submitted.
    fn has_room(&self) -> bool;

    /// Queues an operation. Only to be called when [`Store::has_room`] says so.
    fn submit(&mut self, tag: Tag, op: StoreOp);

    /// Takes the completions that are there, without waiting.
    fn reap(&mut self, into: &mut Vec<StoreCompletion>);
}

/// Positioned reads of a whole file, for loading a map.
pub trait ReadAt {
    /// Bytes in the file.
    ///
    /// # Errors
    /// What the operating system says.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// What the operating system says; `UnexpectedEof` when the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Where, from `offset` on, the next bytes are that are not known to be a hole, which reads as zeros;
    /// `None` when there are none to the end of the file. Whoever knows nothing of holes says `offset`.
    ///
    /// # Errors
    /// What the operating system says.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(Some(offset))
    }
}

impl ReadAt for std::fs::File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(self, rustix::fs::SeekFrom::Data(offset)) {
            Ok(at) => Ok(Some(at)),
            // No data to the end, or an offset behind it.
            Err(rustix::io::Errno::NXIO) => Ok(None),
            // A file system that does not know holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(e) => Err(e.into()),
        }
    }
}
