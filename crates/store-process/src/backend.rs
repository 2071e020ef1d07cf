//! What does the I/O of a store process.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use store_ring::{Data, LaneMemory, Operation};

/// Names an operation of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    /// Which data plane's.
    pub(crate) group: u32,
    pub(crate) lane: u16,
    pub(crate) slot: u16,
}

/// Bytes of the shared memory, which stays mapped for as long as this is there.
#[derive(Clone)]
pub struct Bytes {
    memory: Arc<LaneMemory>,
    data: Data,
}

impl Bytes {
    pub(crate) fn new(memory: Arc<LaneMemory>, data: Data) -> Self {
        Self { memory, data }
    }

    /// Where they begin. The data plane may change them at any time: there is no reference to them, and what is read
    /// twice may be two things.
    pub fn start(&self) -> NonNull<u8> {
        self.memory.address_of(self.data)
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.data.len
    }
}

/// The number of an error, or all is well.
pub type Outcome = Result<(), i32>;

/// What does the I/O. One thread has it.
pub trait Backend: Send + 'static {
    /// Begins an operation, with the bytes of a read or write. Its end comes out of [`Backend::ended`], after others or
    /// before, also when it cannot be begun.
    fn begin(&mut self, token: Token, operation: Operation, bytes: Option<Bytes>);

    /// Takes the operations that have ended, without waiting.
    fn ended(&mut self, into: &mut Vec<(Token, Outcome)>);

    /// What can be read from when one has ended that was not taken.
    fn woken_by(&self) -> BorrowedFd<'_>;
}
