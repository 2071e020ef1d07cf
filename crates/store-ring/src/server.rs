//! The store process's side of a lane.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::entry::{Operation, decode, encode_completion};
use crate::error::{RingError, Side};
use crate::lanes::{Lane, LaneBells, wake};
use crate::layout::{DEPTH, SUBMISSION_WORDS};
use crate::lent::LaneMemory;
use crate::sync::Ordering;

/// An operation that is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Names it for [`ServerLane::complete`].
    pub slot: u32,
    /// What it is. Its range of the memory is one for buffers.
    pub operation: Operation,
}

/// Takes operations and tells their ends. One thread has it.
pub struct ServerLane {
    lane: Lane,
    /// Submissions taken so far.
    taken: u64,
    /// Completions so far.
    completed: u64,
    /// Those of which the other side knows.
    published: u64,
    /// Which slots are in use, and how many.
    in_use: [bool; DEPTH],
    under_way: usize,
}

impl ServerLane {
    /// A lane that nobody has used.
    ///
    /// # Errors
    /// [`RingError::Memory`] when there is none of that number.
    pub fn new(memory: Arc<LaneMemory>, lane: u16, bells: LaneBells) -> Result<Self, RingError> {
        Ok(Self {
            lane: Lane::new(memory, lane, bells)?,
            taken: 0,
            completed: 0,
            published: 0,
            in_use: [false; DEPTH],
            under_way: 0,
        })
    }

    /// The memory that it is in.
    pub fn memory(&self) -> &Arc<LaneMemory> {
        &self.lane.memory
    }

    /// The eventfd that is written to when this side was said to sleep.
    pub fn woken_by(&self) -> BorrowedFd<'_> {
        self.lane.to_store()
    }

    /// Operations that were taken and have not ended.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// The next operation, if there is one.
    ///
    /// # Errors
    /// [`RingError::Violation`].
    pub fn take(&mut self) -> Result<Option<Taken>, RingError> {
        let there = self.lane.submitted().count().wrapping_sub(self.taken);
        if there == 0 {
            return Ok(None);
        }
        let broken = |what| RingError::Violation {
            by: Side::DataPlane,
            what,
        };
        if there > DEPTH as u64 {
            return Err(broken("it has submitted more than there is room for"));
        }
        let mut words = [0; SUBMISSION_WORDS];
        for (index, word) in words.iter_mut().enumerate() {
            *word = self
                .lane
                .submission(self.taken, index)
                .load(Ordering::Relaxed);
        }
        let (slot, operation) = decode(words, self.lane.memory.layout())?;
        match self.in_use.get_mut(slot as usize) {
            Some(in_use) if !*in_use => *in_use = true,
            _ => return Err(broken("a slot is used twice")),
        }
        self.under_way += 1;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(Taken { slot, operation }))
    }

    /// Ends an operation, of which the other side learns by [`ServerLane::publish`]: all of it was done, or the number of
    /// an error. Whether one of that slot was under way.
    pub fn complete(&mut self, slot: u32, result: Result<(), i32>) -> bool {
        match self.in_use.get_mut(slot as usize) {
            Some(in_use) if *in_use => *in_use = false,
            _ => return false,
        }
        self.under_way -= 1;
        let word = encode_completion(slot, result);
        let place = self.lane.completion(self.completed);
        place.store(word, Ordering::Relaxed);
        self.completed = self.completed.wrapping_add(1);
        true
    }

    /// Lets the other side have what has ended, and wakes it if it sleeps.
    ///
    /// # Errors
    /// [`RingError::Io`].
    pub fn publish(&mut self) -> Result<(), RingError> {
        if self.published == self.completed {
            return Ok(());
        }
        self.published = self.completed;
        match self.lane.completed().publish(self.completed) {
            true => wake(self.lane.to_data_plane()),
            false => Ok(()),
        }
    }

    /// Says that this side waits for the eventfd, unless something was submitted; whether it may.
    pub fn may_sleep(&self) -> bool {
        self.lane.submitted().may_sleep(self.taken)
    }

    /// This side waits no more.
    pub fn awake(&self) {
        self.lane.submitted().awake();
    }
}
