//! What a store is asked for: operations on a layer's files, and how they end.

use std::ptr::NonNull;
use std::time::Instant;

use keys::units::LayerIndex;

use super::{IoBuffer, StoreError};

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
    /// the buffers have (`MAX_CHUNKS` at most). A store that can prepare for it does so.
    fn adopt(&mut self, _chunk: usize, _start: NonNull<u8>, _len: usize) {}

    /// Tells that no operation names buffers of that memory any more; none is under way.
    fn disown(&mut self, _chunk: usize) {}

    /// The address of `len` bytes of a layer's data file from `at` on, where the file is memory and
    /// mapped. It is good for as long as the store is. Only to be used for blocks that have data.
    fn mapped(&self, _layer: LayerIndex, _at: u64, _len: usize) -> Option<NonNull<u8>> {
        None
    }

    /// As [`Store::mapped`] of the top layer, where its file may be written to in this way too: a loss of power
    /// takes all of it.
    fn mapped_to_write(&self, _at: u64, _len: usize) -> Option<NonNull<u8>> {
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
