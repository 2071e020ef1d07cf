//! Where everything is in the shared memory.

use std::ops::Range;

/// Operations that are under way on a lane at once.
pub const DEPTH: usize = 256;
/// Bytes of a buffer, and of a read or write at most.
pub const BUFFER_LEN: usize = 64 << 10;
/// Bytes of a place for buffers that a thread has for good.
pub const SMALL_LEN: usize = 256 << 10;
/// Bytes of a chunk of buffers: a huge page.
pub const CHUNK_LEN: usize = 2 << 20;
/// What offsets in files, and lengths, are multiples of.
pub const SECTOR_LEN: u64 = 512;

/// Bytes of a word.
pub(crate) const WORD: usize = 8;
/// Words of a submission.
pub(crate) const SUBMISSION_WORDS: usize = 4;

/// Where in a lane the word is that says how many submissions there were. Words that different sides store are apart by
/// two lines of a cache, which processors fetch in pairs.
pub(crate) const SUBMITTED: usize = 0;
/// Whether the store process sleeps.
pub(crate) const SERVER_SLEEPS: usize = 128;
/// How many completions there were.
pub(crate) const COMPLETED: usize = 256;
/// Whether the data plane sleeps.
pub(crate) const CLIENT_SLEEPS: usize = 384;
/// Where the submissions begin.
pub(crate) const SUBMISSIONS: usize = 512;
/// Where the completions begin, of a word each.
pub(crate) const COMPLETIONS: usize = SUBMISSIONS + DEPTH * SUBMISSION_WORDS * WORD;
/// Bytes of a lane.
const LANE_LEN: usize = 12 << 10;

// Panics: when it is compiled.
const _: () = assert!(COMPLETIONS + DEPTH * WORD <= LANE_LEN);

/// What there is in the shared memory. The process that makes it tells both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Threads that do I/O at the same time.
    pub lanes: u16,
    /// Places for buffers that a thread has for good.
    pub small: u16,
    /// Chunks of buffers.
    pub chunks: u16,
}

impl Layout {
    /// Bytes of the memory.
    pub fn bytes(self) -> usize {
        self.chunk_at(self.chunks)
    }

    /// Where a lane begins, if there is one of that number.
    pub(crate) fn lane(self, lane: u16) -> Option<usize> {
        (lane < self.lanes).then_some(usize::from(lane) * LANE_LEN)
    }

    /// Where the place of this number begins.
    pub(crate) fn small_at(self, number: u16) -> usize {
        let lanes = usize::from(self.lanes) * LANE_LEN;
        lanes.next_multiple_of(BUFFER_LEN) + usize::from(number) * SMALL_LEN
    }

    /// Where the chunk of this number begins.
    pub(crate) fn chunk_at(self, number: u16) -> usize {
        let small = self.small_at(self.small);
        small.next_multiple_of(CHUNK_LEN) + usize::from(number) * CHUNK_LEN
    }

    /// Where buffers may lie.
    pub(crate) fn buffers(self) -> Range<usize> {
        self.small_at(0)..self.bytes()
    }
}
