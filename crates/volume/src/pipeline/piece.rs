//! The part of a request that is one operation on the store.

use std::fmt;

use crate::marks::BlockMark;
use crate::must_complete::MustComplete;
use crate::{DurableWrite, FailedSync};
use keys::units::{ByteOffset, LayerIndex};
use xts::Cursor;

use super::request::NamedRequest;

/// Where a request is in a pipeline's table.
pub(super) type RequestId = usize;

/// A part of one block.
#[derive(Debug, Clone, Copy)]
pub(super) struct PartOfBlock {
    pub(super) at: ByteOffset,
    pub(super) len: usize,
    /// Where in the guest's memory it is.
    pub(super) cursor: Cursor,
    /// It is zeros instead.
    pub(super) zeros: bool,
}

/// A piece, and the request that is not finished before it.
#[derive(Debug, Clone, Copy)]
pub(super) struct PieceOf {
    pub(super) id: RequestId,
    /// The request, with the range of the piece.
    pub(super) part: NamedRequest,
}

impl fmt::Display for PieceOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a piece of a request: {}", self.part)
    }
}

/// Counts among the pieces that its request waits for.
pub(super) type Owed = MustComplete<PieceOf>;

/// An operation that the flush of a queue waits for.
pub(super) type FlushOperation = MustComplete<&'static str>;

/// What is to be done when an operation of the store completes.
pub(super) enum Piece {
    /// Decrypt what was read, then release the blocks (shared).
    Read {
        owed: Owed,
        /// First byte that the guest gets.
        at: ByteOffset,
        /// Bytes that it gets.
        len: usize,
        /// Bytes at the start of the buffer that were only read for alignment.
        skip: usize,
        /// Whose ciphertext it is.
        layer: LayerIndex,
        cursor: Cursor,
        mark: BlockMark,
    },
    /// Note that the blocks have data, then release them.
    Write {
        owed: Owed,
        mark: BlockMark,
        /// The blocks were written as a whole.
        whole: bool,
        /// It is to be durable by itself, and counts as begun until its end is known.
        durable: Option<DurableWrite>,
    },
    /// Write the old ciphertext of blocks of a layer, all of it but the part that is replaced, to the top
    /// layer.
    Rewrite {
        owed: Owed,
        mark: BlockMark,
        layer: LayerIndex,
        part: Option<PartOfBlock>,
    },
    /// A part of the map, written by a flush.
    WriteMap { owed: FlushOperation },
    /// A sync of a flush.
    Sync {
        owed: FlushOperation,
        file: FailedSync,
    },
    /// Random bytes over the first `done` blocks of what is to become a hole.
    Overwrite { mark: BlockMark, done: u64 },
    /// A hole, which belongs to no request.
    Punch { mark: BlockMark },
}

impl Piece {
    /// Gives it up, with its whole pipeline: no one waits for it there any more. Its blocks stay marked, so
    /// nobody may go on with the volume either.
    pub(super) fn abandon(self) {
        match self {
            Self::Read { owed, mark, .. }
            | Self::Write { owed, mark, .. }
            | Self::Rewrite { owed, mark, .. } => {
                owed.complete();
                mark.abandon();
            }
            Self::WriteMap { owed } | Self::Sync { owed, .. } => {
                owed.complete();
            }
            Self::Overwrite { mark, .. } | Self::Punch { mark } => mark.abandon(),
        }
    }
}
