//! What a pipeline is asked for, and what it answers.

use std::any::Any;
use std::sync::Arc;

use keys::units::ByteOffset;
use xts::SharedSlice;

use super::OpError;

/// Names a request; chosen by whoever submits it, given back when it is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// What is to be done with the range of an [`Op`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpKind {
    /// Decrypt it into the guest's memory.
    Read,
    /// Encrypt it from the guest's memory.
    Write {
        /// Durable before it is finished (write-through).
        durable: bool,
    },
    /// Make it read as zeros.
    Zero {
        /// Give the space back once that is durable.
        release: bool,
        /// Durable before it is finished (write-through).
        durable: bool,
    },
    /// Copy what the top layer lacks of it, when the `drop` layers beneath the top are to go, into
    /// the top: whole blocks, or to the end of the disk.
    Raise {
        /// How many layers are to go.
        drop: u8,
    },
    /// Make every write that was finished before durable. The range is empty.
    Flush,
}

/// Guest memory of a request, with whatever keeps it mapped.
#[derive(Default)]
pub struct GuestBuffer {
    /// The memory, in order. Together the slices are at least as long as the request.
    pub slices: Vec<SharedSlice>,
    /// Keeps the memory mapped until the request is finished.
    pub owner: Option<Arc<dyn Any + Send + Sync>>,
}

/// One request: a range of the disk, in whole 512-byte sectors.
pub struct Op {
    /// What to do.
    pub kind: OpKind,
    /// Where on the disk.
    pub at: ByteOffset,
    /// Bytes.
    pub len: u64,
    /// From or to where; empty for zeros and flushes.
    pub memory: GuestBuffer,
    /// Its name.
    pub token: Token,
}

/// The end of an [`Op`].
pub struct Finished {
    /// As submitted.
    pub token: Token,
    /// Whether all of it was done.
    pub result: Result<(), OpError>,
    /// The request's memory, back.
    pub memory: GuestBuffer,
}
