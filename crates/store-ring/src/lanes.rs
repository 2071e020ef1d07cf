//! What both sides of a lane have in common: its words, and how they wake each other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::bell::Bell;
use crate::error::RingError;
use crate::layout::{
    CLIENT_SLEEPS, COMPLETED, COMPLETIONS, DEPTH, SERVER_SLEEPS, SUBMISSION_WORDS, SUBMISSIONS,
    SUBMITTED, WORD,
};
use crate::lent::LaneMemory;
use crate::sync::AtomicU64;

/// The two eventfds of a lane. Both sides have both.
#[derive(Debug)]
pub struct LaneBells {
    /// Wakes the store process.
    pub to_store: OwnedFd,
    /// Wakes the data plane.
    pub to_data_plane: OwnedFd,
}

impl LaneBells {
    /// Makes them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn make() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            to_store: eventfd(0, flags)?,
            to_data_plane: eventfd(0, flags)?,
        })
    }

    /// The same for the other side.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            to_store: self.to_store.try_clone()?,
            to_data_plane: self.to_data_plane.try_clone()?,
        })
    }
}

/// A lane in the memory.
pub(crate) struct Lane {
    pub(crate) memory: Arc<LaneMemory>,
    /// Where it begins.
    at: usize,
    bells: LaneBells,
}

impl Lane {
    pub(crate) fn new(
        memory: Arc<LaneMemory>,
        lane: u16,
        bells: LaneBells,
    ) -> Result<Self, RingError> {
        let at = memory.layout().lane(lane).ok_or(RingError::Memory {
            what: "has no lane of that number",
        })?;
        Ok(Self { memory, at, bells })
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        self.memory.memory.word(self.at + at)
    }

    /// The bell of submissions.
    pub(crate) fn submitted(&self) -> Bell<'_> {
        Bell {
            count: self.word(SUBMITTED),
            sleeps: self.word(SERVER_SLEEPS),
        }
    }

    /// The bell of completions.
    pub(crate) fn completed(&self) -> Bell<'_> {
        Bell {
            count: self.word(COMPLETED),
            sleeps: self.word(CLIENT_SLEEPS),
        }
    }

    /// A word of the submission that is the `number`-th of all there ever were.
    pub(crate) fn submission(&self, number: u64, word: usize) -> &AtomicU64 {
        let place = (number % DEPTH as u64) as usize;
        self.word(SUBMISSIONS + (place * SUBMISSION_WORDS + word) * WORD)
    }

    /// The word of the completion that is the `number`-th of all there ever were.
    pub(crate) fn completion(&self, number: u64) -> &AtomicU64 {
        let place = (number % DEPTH as u64) as usize;
        self.word(COMPLETIONS + place * WORD)
    }

    pub(crate) fn to_store(&self) -> BorrowedFd<'_> {
        self.bells.to_store.as_fd()
    }

    pub(crate) fn to_data_plane(&self) -> BorrowedFd<'_> {
        self.bells.to_data_plane.as_fd()
    }
}

/// Wakes who waits for an eventfd.
pub(crate) fn wake(fd: BorrowedFd<'_>) -> Result<(), RingError> {
    loop {
        match rustix::io::write(fd, &1u64.to_ne_bytes()) {
            // A counter that is full is not 0 either.
            Ok(_) | Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => {
                return Err(RingError::io("wake who shares memory with this process")(
                    error,
                ));
            }
        }
    }
}
