//! The flushes of one queue: what waits for which flush, and the state of the flush that the queue runs.

use std::collections::VecDeque;

use crate::format::STATES_LEN;
use crate::marks::BlockMark;
use crate::{BegunWrites, BlockMap, FlushNumber, FlushTurn};

use super::outcome::Outcome;
use super::piece::RequestId;

/// Bytes of a buffer for a few map sectors that lie together.
pub(super) const MAP_BUFFER_LEN: usize = 4096;
/// How many of these there are.
pub(super) const MAP_BUFFERS: usize = 16;
/// Sectors whose copies are kept room for between flushes.
pub(super) const USUAL_SECTORS: usize = 256;

/// Which step of a flush is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Step {
    #[default]
    SyncData,
    /// Until it is known how durable writes of any queue ended that began before: when one has failed, the
    /// data that the map is to call so may be lost.
    AwaitData,
    WriteMap,
    SyncMap,
    /// The same before anybody is told.
    AwaitWrites,
}

/// The flushes of one queue.
#[derive(Default)]
pub(super) struct FlushJob {
    /// What waits for which flush, in rising order.
    pub(super) waiters: VecDeque<(Waiter, FlushNumber)>,
    /// The flush that this queue runs.
    pub(super) turn: Option<FlushTurn>,
    pub(super) step: Step,
    /// Its operations not completed yet.
    pub(super) outstanding: u32,
    /// Durable writes that it waits for, once it knows which.
    pub(super) begun: Option<BegunWrites>,
    pub(super) outcome: Outcome,
    /// The copy of the changed map sectors, taken before the data is synced.
    pub(super) sectors: Vec<u64>,
    pub(super) states: Vec<[u8; STATES_LEN]>,
    /// Sectors of the copy that were handed to the store.
    pub(super) written: usize,
}

/// What waits for a flush.
pub(super) enum Waiter {
    Request(RequestId),
    /// Blocks that were overwritten and are to become a hole.
    Overwritten(BlockMark),
    /// Discards that the guest does not flush: they become durable all the same.
    Discards,
}

impl FlushJob {
    /// Whether nothing waits for a flush, and none is under way here.
    pub(super) fn is_idle(&self) -> bool {
        self.waiters.is_empty() && self.turn.is_none()
    }

    /// Gives all of it up, with its whole pipeline. A flush under way has made nothing durable, and whoever flushes
    /// next, in this process or another, has to know; nobody does before the turn goes with the pipeline.
    pub(super) fn abandon(&mut self, map: &BlockMap) {
        for (waiter, _) in self.waiters.drain(..) {
            waiter.abandon();
        }
        if self.turn.is_some() {
            self.put_back(map);
        }
    }

    /// Has the next flush write all of the copy again, of which nothing may be taken for durable.
    pub(super) fn put_back(&self, map: &BlockMap) {
        for sector in &self.sectors {
            map.mark_dirty(*sector);
        }
        map.end_flush(&self.sectors);
    }

    /// Whether the flush under way here waits for durable writes, which may be of other queues.
    pub(super) fn awaits_writes(&self) -> bool {
        matches!(self.step, Step::AwaitData | Step::AwaitWrites) && self.turn.is_some()
    }

    /// What the first that waits for another queue's flush waits for.
    pub(super) fn waits_for(&self) -> Option<FlushNumber> {
        match &self.turn {
            Some(_) => None,
            None => self.waiters.front().map(|(_, flush)| *flush),
        }
    }
}

impl Waiter {
    /// Gives it up, with its whole pipeline.
    pub(super) fn abandon(self) {
        match self {
            Self::Overwritten(mark) => mark.abandon(),
            Self::Request(_) | Self::Discards => {}
        }
    }
}
