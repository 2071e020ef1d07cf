//! The part of a request that is one operation on the store.

use std::ops::Range;

use crate::cipher::Cursor;
use crate::units::ByteOffset;

/// Names a request inside a pipeline.
pub(super) type RequestId = u32;

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
    },
    /// The old ciphertext of a block, of which a part is replaced before it is written again.
    Merge {
        request: RequestId,
        at: ByteOffset,
        len: usize,
        cursor: Cursor,
        zeros: bool,
    },
    /// A step of a flush.
    Flush { request: RequestId },
    /// Random bytes over the first `done` blocks of what is to become a hole.
    Overwrite { blocks: Range<u64>, done: u64 },
    /// Making them durable, all of them.
    SyncOverwritten { blocks: Range<u64> },
    /// A hole, which belongs to no request.
    Punch { blocks: Range<u64> },
}
