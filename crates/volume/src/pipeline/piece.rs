//! The part of a request that is one operation on the store.

use std::ops::Range;

use crate::{DurableWrite, FailedSync};
use keys::units::{ByteOffset, LayerIndex};
use xts::Cursor;

/// Names a request inside a pipeline.
pub(super) type RequestId = u32;

/// A part of one block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) at: ByteOffset,
    pub(super) len: usize,
    /// Where in the guest's memory it is.
    pub(super) cursor: Cursor,
    /// It is zeros instead.
    pub(super) zeros: bool,
}

/// What is to be done when an operation of the store completes.
pub(super) enum Piece {
    /// Decrypt what was read, then let go of the blocks (shared).
    Read {
        request: RequestId,
        /// First byte that the guest gets.
        at: ByteOffset,
        /// Bytes that it gets.
        len: usize,
        /// Bytes at the start of the buffer that were only read for alignment.
        skip: usize,
        /// Whose ciphertext it is.
        layer: LayerIndex,
        cursor: Cursor,
        blocks: Range<u64>,
    },
    /// Note that the blocks have data, then let go of them.
    Write {
        request: RequestId,
        blocks: Range<u64>,
        exclusive: bool,
        /// The blocks were written as a whole.
        whole: bool,
        /// It was to be durable by itself, and is counted as long as nobody knows how it ended.
        durable: Option<DurableWrite>,
    },
    /// The old ciphertext of blocks, of a layer's, that becomes the top layer's: all of it, but for
    /// what is replaced.
    Rewrite {
        request: RequestId,
        blocks: Range<u64>,
        layer: LayerIndex,
        part: Option<Part>,
    },
    /// A part of the map, written by a flush.
    WriteMap,
    /// A sync of a flush.
    Sync { file: FailedSync },
    /// Random bytes over the first `done` blocks of what is to become a hole.
    Overwrite { blocks: Range<u64>, done: u64 },
    /// A hole, which belongs to no request.
    Punch { blocks: Range<u64> },
}
