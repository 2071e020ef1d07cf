//! The data plane's side of a lane.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::entry::{Operation, decode_completion, encode};
use crate::error::{RingError, Side};
use crate::lanes::{Lane, LaneBells, wake};
use crate::layout::DEPTH;
use crate::lent::LaneMemory;
use crate::sync::Ordering;

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The slot of its submission, which is free from now on.
    pub slot: u32,
    /// Whether all of it was done, or the number of the error.
    pub result: Result<(), i32>,
}

/// Submits operations and takes their ends. One thread has it at a time.
pub struct ClientLane {
    lane: Lane,
    /// Submissions so far.
    submitted: u64,
    /// Those of which the other side knows.
    published: u64,
    /// Completions taken so far.
    reaped: u64,
}

impl ClientLane {
    /// A lane that nobody has used.
    ///
    /// # Errors
    /// [`RingError::Memory`] when there is none of that number.
    pub fn new(memory: Arc<LaneMemory>, lane: u16, bells: LaneBells) -> Result<Self, RingError> {
        Ok(Self {
            lane: Lane::new(memory, lane, bells)?,
            submitted: 0,
            published: 0,
            reaped: 0,
        })
    }

    /// The memory that it is in.
    pub fn memory(&self) -> &Arc<LaneMemory> {
        &self.lane.memory
    }

    /// The eventfd that is written to when this side was said to sleep.
    pub fn woken_by(&self) -> BorrowedFd<'_> {
        self.lane.to_data_plane()
    }

    /// Operations under way: submitted, and whose end was not taken.
    pub fn under_way(&self) -> usize {
        // There are never more than `DEPTH`.
        self.submitted.wrapping_sub(self.reaped) as usize
    }

    /// Submissions that the other side does not know of yet.
    pub fn queued(&self) -> usize {
        self.submitted.wrapping_sub(self.published) as usize
    }

    /// Submits an operation, of which the other side learns by [`ClientLane::publish`]. No other one under way may have
    /// its slot, which is less than [`DEPTH`]: so there is always room.
    pub fn submit(&mut self, slot: u32, operation: &Operation) {
        debug_assert!(self.under_way() < DEPTH && (slot as usize) < DEPTH);
        for (word, value) in encode(slot, operation).into_iter().enumerate() {
            let place = self.lane.submission(self.submitted, word);
            place.store(value, Ordering::Relaxed);
        }
        self.submitted = self.submitted.wrapping_add(1);
    }

    /// Lets the other side have what was submitted, and wakes it if it sleeps.
    ///
    /// # Errors
    /// [`RingError::Io`].
    pub fn publish(&mut self) -> Result<(), RingError> {
        if self.published == self.submitted {
            return Ok(());
        }
        self.published = self.submitted;
        match self.lane.submitted().publish(self.submitted) {
            true => wake(self.lane.to_store()),
            false => Ok(()),
        }
    }

    /// Whether there is something for [`ClientLane::next_completion`].
    pub fn has_completed(&self) -> bool {
        self.lane.completed().count() != self.reaped
    }

    /// The next end of an operation, if there is one.
    ///
    /// # Errors
    /// [`RingError::Violation`].
    pub fn next_completion(&mut self) -> Result<Option<Completion>, RingError> {
        let there = self.lane.completed().count().wrapping_sub(self.reaped);
        if there == 0 {
            return Ok(None);
        }
        // What was never submitted cannot have completed.
        if there > self.published.wrapping_sub(self.reaped) {
            return Err(RingError::Violation {
                by: Side::StoreProcess,
                what: "it has completed more than was submitted",
            });
        }
        let word = self.lane.completion(self.reaped).load(Ordering::Relaxed);
        let (slot, result) = decode_completion(word)?;
        self.reaped = self.reaped.wrapping_add(1);
        Ok(Some(Completion { slot, result }))
    }

    /// Says that this side waits for the eventfd, unless something has completed; whether it may.
    pub fn may_sleep(&self) -> bool {
        self.lane.completed().may_sleep(self.reaped)
    }

    /// This side waits no more.
    pub fn awake(&self) {
        self.lane.completed().awake();
    }
}
