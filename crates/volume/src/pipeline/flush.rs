//! Flushing the data and the map of a disk: one flush serves all requests that wait for it.
//!
//! A request that is to be durable waits for the number of the flush that covers it
//! ([`Flushes`](crate::Flushes)). A queue whose requests wait, and that finds no flush under way,
//! runs the next one; it belongs to no request, and is told of by its number to all.

use crate::format::{self, SECTOR_LEN};
use crate::must_complete::MustComplete;
use crate::store::{Store, StoreFile, StoreOp};
use crate::{FailedSync, FlushNumber, FlushTurn};

use super::RequestError;
use super::flush_job::{MAP_BUFFER_LEN, Step, USUAL_SECTORS, Waiter};
use super::piece::{FlushOperation, Piece};
use super::scheduler::Pipeline;

/// Sectors that lie in one page of the map file: what is between two of them is written as well.
const TOGETHER: u64 = (MAP_BUFFER_LEN / SECTOR_LEN) as u64;
/// Sectors that a flush writes at most for no other reason than that space of theirs was given back.
const RELEASED_AT_ONCE: usize = 16;

impl<S: Store> Pipeline<S> {
    /// Has a request, or blocks, wait for the flush that covers what was done until now.
    pub(super) fn await_flush(&mut self, waiter: Waiter) {
        let flush = self.volume.flushes().covering();
        self.flush.waiters.push_back((waiter, flush));
    }

    /// Begins a flush for the requests that wait for one, if none is under way, and carries on with one
    /// that is. To be called when a batch of requests was submitted, so that they share it;
    /// [`Pipeline::poll`] does it as well.
    pub fn go_on_flushing(&mut self) {
        loop {
            self.serve_waiters();
            if self.flush.turn.is_none() && !self.begin_flush() {
                return;
            }
            if !self.advance_flush() {
                return;
            }
        }
    }

    /// Ends the wait of whom a flush has served, or of all when none can any more.
    fn serve_waiters(&mut self) {
        let ours = self.flush.turn.as_ref().map(FlushTurn::number);
        while let Some((waiter, flush)) = self.flush.waiters.front() {
            // Those have the outcome of this queue's own flush, in the end.
            if ours.is_some_and(|ours| *flush <= ours) {
                return;
            }
            // The hole follows at once.
            if matches!(waiter, Waiter::Overwritten(_)) && !self.store.has_room() {
                return;
            }
            let result = match self.volume.flushes().is_done(*flush) {
                true => Ok(()),
                false => match self.volume.failed_sync() {
                    Some(file) => Err(RequestError::Lost(file)),
                    None => return,
                },
            };
            self.serve_waiter(result);
        }
    }

    /// Ends the wait of the first.
    fn serve_waiter(&mut self, result: Result<(), RequestError>) {
        let Some((waiter, _)) = self.flush.waiters.pop_front() else {
            return;
        };
        match waiter {
            Waiter::Request(id) => {
                if let Err(error) = result {
                    self.fail(id, error);
                }
                self.finish(id);
            }
            Waiter::Overwritten(mark) => self.overwrite_flushed(mark, result),
            // A flush that has failed is reported to those who asked for one. The discards wait for another; after
            // a failed sync there is none.
            Waiter::Discards => {
                if result.is_err() && self.volume.failed_sync().is_none() {
                    self.note_discard();
                }
            }
        }
    }

    /// Takes the turn and copies what has changed; whether that could be.
    fn begin_flush(&mut self) -> bool {
        if self.flush.waiters.is_empty() || !self.store.has_room() {
            return false;
        }
        let Some(turn) = self.volume.flushes().try_begin() else {
            return false;
        };
        let (map, job) = (self.volume.map(), &mut self.flush);
        job.turn = Some(turn);
        // The copy comes before the sync: whatever it calls data was completely written before it
        // was called so, hence before the sync.
        map.take_dirty(&mut job.sectors, RELEASED_AT_ONCE);
        fill_gaps(&mut job.sectors);
        let states = job.sectors.iter().map(|sector| map.sector_states(*sector));
        job.states.extend(states);
        job.step = Step::SyncData;
        self.flush_sync(FailedSync::Data);
        true
    }

    /// Takes the flush on; whether it can be taken on at once again.
    fn advance_flush(&mut self) -> bool {
        let job = &self.flush;
        let through = job.outstanding == 0;
        if job.outcome.has_failed() {
            if through {
                self.end_flush();
            }
            return through;
        }
        match job.step {
            Step::SyncData if through => self.flush.step = Step::AwaitData,
            Step::AwaitData => match (self.writes_have_ended(), self.volume.failed_sync()) {
                (false, _) => return false,
                (true, Some(file)) => self.flush.outcome.fail(RequestError::Lost(file)),
                (true, None) => {
                    self.flush.begun = None;
                    self.flush.step = Step::WriteMap;
                }
            },
            Step::WriteMap if job.written < job.sectors.len() => return self.write_map(),
            Step::WriteMap if through => {
                if job.sectors.is_empty() && self.volume.is_map_synced() {
                    self.flush.step = Step::AwaitWrites;
                } else if self.store.has_room() {
                    self.flush.step = Step::SyncMap;
                    self.flush_sync(FailedSync::Map);
                } else {
                    return false;
                }
            }
            Step::SyncMap if through => self.flush.step = Step::AwaitWrites,
            Step::AwaitWrites => match self.writes_have_ended() {
                true => self.end_flush(),
                false => return false,
            },
            Step::SyncData | Step::WriteMap | Step::SyncMap => return false,
        }
        true
    }

    /// Whether it is known how all durable writes ended that began before this flush had synced: the kernel may
    /// have told one of them what it does not tell the sync.
    fn writes_have_ended(&mut self) -> bool {
        let writes = self.volume.flushes().durable_writes();
        if self.flush.begun.is_none() {
            self.flush.begun = writes.begun();
        }
        let begun = self.flush.begun.as_ref();
        begun.is_some_and(|begun| writes.have_ended(begun))
    }

    /// Writes a run of neighbouring sectors from one buffer; whether there was room for it.
    fn write_map(&mut self) -> bool {
        let job = &self.flush;
        let (sectors, states) = (&job.sectors[job.written..], &job.states[job.written..]);
        let Some(&first) = sectors.first() else {
            return true;
        };
        let neighbours = sectors
            .iter()
            .zip(first..)
            .take_while(|(sector, expected)| *sector == expected);
        let run = neighbours.count();
        let few = run <= TOGETHER as usize;
        if !self.store.has_room() {
            return false;
        }
        let small = self.map_pool.take();
        let buffer = match (few, small) {
            (true, small) => small,
            (false, small) => match (self.pool.take(), small) {
                (Some(large), Some(small)) => {
                    self.map_pool.put(small);
                    Some(large)
                }
                (large, small) => large.or(small),
            },
        };
        let Some(mut buffer) = buffer else {
            return false;
        };
        let mut count = 0;
        let places = buffer.as_mut_slice().as_chunks_mut::<SECTOR_LEN>().0;
        for ((into, sector), states) in places.iter_mut().zip(&sectors[..run]).zip(states) {
            *into = format::encode_sector(*sector, states);
            count += 1;
        }
        self.flush.written += count;
        let op = StoreOp::Write {
            file: StoreFile::Map,
            at: format::sector_offset(first),
            len: count * SECTOR_LEN,
            durable: false,
            buffer,
        };
        let owed = self.flush_operation("a write of the map by a flush");
        self.submit_piece(Piece::WriteMap { owed }, op);
        true
    }

    fn flush_sync(&mut self, what: FailedSync) {
        let file = match what {
            FailedSync::Data => StoreFile::TOP,
            FailedSync::Map => StoreFile::Map,
        };
        let owed = self.flush_operation("a sync by a flush");
        let piece = Piece::Sync { owed, file: what };
        self.submit_piece(piece, StoreOp::Sync { file });
    }

    /// Counts one more operation that the flush waits for.
    fn flush_operation(&mut self, what: &'static str) -> FlushOperation {
        self.flush.outstanding += 1;
        MustComplete::new(what)
    }

    /// Notes the end of an operation of the flush.
    pub(super) fn flush_operation_done(
        &mut self,
        owed: FlushOperation,
        result: Result<(), RequestError>,
    ) {
        owed.complete();
        debug_assert!(
            self.flush.outstanding > 0,
            "an operation that no flush began"
        );
        self.flush.outstanding -= 1;
        if let Err(error) = result {
            self.flush.outcome.fail(error);
        }
    }

    /// Nothing of the flush is under way any more: it is done, or has failed.
    fn end_flush(&mut self) {
        let Some(turn) = self.flush.turn.take() else {
            return;
        };
        let mut outcome = std::mem::take(&mut self.flush.outcome);
        // A durable write may have met meanwhile what the kernel says only once.
        if let Some(file) = self.volume.failed_sync() {
            outcome.fail(RequestError::Lost(file));
        }
        let number = turn.number();
        match outcome.into_result() {
            Ok(()) => {
                self.volume.set_map_synced();
                self.volume.map().end_flush(&self.flush.sectors);
                turn.succeed();
            }
            Err(error) => {
                self.flush.put_back(self.volume.map());
                drop(turn);
                let fails = |flush: &FlushNumber| *flush <= number;
                while self.flush.waiters.front().is_some_and(|(_, f)| fails(f)) {
                    self.serve_waiter(Err(error.clone()));
                }
            }
        }
        let job = &mut self.flush;
        job.begun = None;
        job.sectors.clear();
        job.states.clear();
        job.sectors.shrink_to(USUAL_SECTORS);
        job.states.shrink_to(USUAL_SECTORS);
        job.written = 0;
    }
}

/// Adds the sectors that lie between others in one page of the map file: one write for all of them costs
/// less than several. What the map says of them is as true as of the others.
fn fill_gaps(sectors: &mut Vec<u64>) {
    let page = |sector: u64| format::sector_offset(sector) / MAP_BUFFER_LEN as u64;
    let count = sectors.len();
    for index in 1..count {
        let (before, this) = (sectors[index - 1], sectors[index]);
        if page(before) == page(this) {
            sectors.extend(before + 1..this);
        }
    }
    if sectors.len() > count {
        sectors.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_of_one_page_are_written_together() {
        let mut sectors = vec![0, 3, 7, 8, 17, 20, 40];
        fill_gaps(&mut sectors);
        let expected: Vec<u64> = (0..=8).chain(17..=20).chain([40]).collect();
        assert_eq!(sectors, expected);
    }
}
