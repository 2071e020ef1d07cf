//! What a pipeline is asked for, and how it answers.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use keys::units::ByteOffset;
use xts::SharedSlice;

use crate::must_complete::MustComplete;

use super::RequestError;

/// The name of a request. The submitter chooses it and gets it back when the request is finished.
///
/// For messages the upper half says where the request came from: bits 48 to 63 are the virtqueue, 32 to 47 the
/// head of the descriptor chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

impl Token {
    /// The name of a request that the descriptor chain `head` of the virtqueue `queue` asks for, and that its
    /// submitter keeps at `place`.
    pub fn of_chain(queue: u16, head: u16, place: u32) -> Self {
        Self(u64::from(queue) << 48 | u64::from(head) << 32 | u64::from(place))
    }

    /// Where the submitter keeps the request.
    pub fn place(self) -> usize {
        self.0 as u32 as usize
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {}, head {}", self.0 >> 48, self.0 >> 32 & 0xffff)
    }
}

/// What is to be done with the range of a [`BlockRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// Decrypt it into the guest's memory.
    Read,
    /// Encrypt it from the guest's memory.
    Write {
        /// It is durable before it is finished (write-through).
        durable: bool,
    },
    /// Make it read as zeros.
    Zero {
        /// Give the space back once that is durable: a discard.
        release: bool,
        /// It is durable before it is finished (write-through).
        durable: bool,
    },
    /// Copy what the top layer is missing of it, when the `drop` layers beneath the top are to go, into the
    /// top: whole blocks, or to the end of the disk.
    CopyUp {
        /// How many layers are to go.
        drop: u8,
    },
    /// Make every write durable that was finished before. The range is empty.
    Flush,
}

impl RequestKind {
    /// Whether guest memory is read or written.
    pub fn has_data(self) -> bool {
        matches!(self, Self::Read | Self::Write { .. })
    }
}

impl fmt::Display for RequestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write { .. } => "write",
            Self::Zero { release: true, .. } => "discard",
            Self::Zero { release: false, .. } => "write zeroes",
            Self::CopyUp { .. } => "copy-up",
            Self::Flush => "flush",
        })
    }
}

/// A request for a range of the disk, in whole 512-byte sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockRequest {
    /// What to do.
    pub kind: RequestKind,
    /// Where on the disk.
    pub at: ByteOffset,
    /// Bytes.
    pub len: u64,
}

impl BlockRequest {
    /// A flush.
    pub const FLUSH: Self = Self {
        kind: RequestKind::Flush,
        at: ByteOffset(0),
        len: 0,
    };
}

impl fmt::Display for BlockRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, at, len } = self;
        match kind {
            RequestKind::Flush => kind.fmt(f),
            _ => write!(f, "{kind} of {len} bytes at sector {}", at.sector().0),
        }
    }
}

/// A request and whose it is, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct NamedRequest {
    pub(super) token: Token,
    pub(super) request: BlockRequest,
}

impl fmt::Display for NamedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} ({})", self.request, self.token)
    }
}

/// Guest memory of a request, with whatever keeps it mapped.
#[derive(Default)]
pub struct GuestBuffer {
    /// The memory, in order. Together the slices are at least as long as the request.
    pub slices: Vec<SharedSlice>,
    /// Keeps the memory mapped until the request is finished.
    pub owner: Option<Arc<dyn Any + Send + Sync>>,
}

/// A request for a pipeline. It must be submitted or withdrawn: a guest waits for it.
#[must_use = "a request that is dropped ends the process"]
pub struct Submission {
    pub(super) name: MustComplete<NamedRequest>,
    pub(super) memory: GuestBuffer,
}

impl Submission {
    /// Asks for `request` from or into `memory`, which is empty for zeros and flushes.
    pub fn new(token: Token, request: BlockRequest, memory: GuestBuffer) -> Self {
        let name = MustComplete::new(NamedRequest { token, request });
        Self { name, memory }
    }

    /// Its name.
    pub fn token(&self) -> Token {
        self.name.get().token
    }

    /// What it asks for.
    pub fn request(&self) -> BlockRequest {
        self.name.get().request
    }

    /// Takes it back, to be answered without a pipeline.
    pub fn withdraw(self) -> (Token, GuestBuffer) {
        (self.name.complete().token, self.memory)
    }
}

/// The end of a [`Submission`]. It must be taken: a guest waits for it.
#[must_use = "a request that is dropped ends the process"]
pub struct Finished {
    pub(super) name: MustComplete<NamedRequest>,
    /// Whether all of it was done.
    pub result: Result<(), RequestError>,
    pub(super) memory: GuestBuffer,
}

impl Finished {
    /// Its name, as submitted.
    pub fn token(&self) -> Token {
        self.name.get().token
    }

    /// What it asked for.
    pub fn request(&self) -> BlockRequest {
        self.name.get().request
    }

    /// Takes the answer, and the request's memory back.
    pub fn take(self) -> (Token, Result<(), RequestError>, GuestBuffer) {
        (self.name.complete().token, self.result, self.memory)
    }

    /// Makes a request that has failed one once more, and says why it failed; gives back one that is done.
    ///
    /// # Errors
    /// It was done.
    pub fn retry(self) -> Result<(Submission, RequestError), Self> {
        match self {
            Self {
                name,
                result: Err(error),
                memory,
            } => Ok((Submission { name, memory }, error)),
            done => Err(done),
        }
    }
}
