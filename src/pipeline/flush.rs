//! Flushing, and giving space back afterwards.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::store::{IoBuffer, Store, StoreError, StoreFile, StoreOp};
use crate::units::BLOCK_SIZE;
use crate::volume::format::{self, BLOCKS_PER_SECTOR, SECTOR_LEN, STATES_LEN};
use crate::volume::{BlockState, FailedSync, held_runs};

use super::OpError;
use super::drive::{BUFFER_LEN, Pipeline, Progress};
use super::piece::{Piece, RequestId};

/// Blocks that are given back by one hole.
const PUNCH_STEP: u64 = 1024;
/// Holes under way at once: guests go first.
const PUNCHES_AT_ONCE: usize = 2;

/// Which step of a flush is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Step {
    #[default]
    Begin,
    SyncData,
    WriteMap,
    SyncMap,
}

/// A flush under way: the copy of the changed map sectors, taken before the data is synced.
#[derive(Default)]
pub(super) struct FlushJob {
    step: Step,
    sectors: Vec<u64>,
    states: Vec<[u8; STATES_LEN]>,
    /// Sectors of the copy that were handed to the store.
    written: usize,
}

/// A hole that is due: the durable map says `ZeroHeld` of these blocks.
struct Punch {
    blocks: Range<u64>,
    /// The flush that made it say so. A later one may have made the blocks `Data` again, after
    /// which they may have been discarded again without that being durable yet: then a hole now
    /// would be read as ciphertext after a power loss.
    flush: u64,
}

/// Holes to be punched.
#[derive(Default)]
pub(super) struct Punches {
    queue: VecDeque<Punch>,
    under_way: usize,
    unsupported: bool,
    /// Old ciphertext is overwritten first.
    pub(super) overwrite: bool,
}

impl<S: Store> Pipeline<S> {
    /// Takes a flush on from the step whose operations have completed.
    pub(super) fn drive_flush(&mut self, id: RequestId) -> Progress {
        let Some(request) = self.requests.get_mut(id) else {
            return Progress::Issued;
        };
        if request.outstanding > 0 && request.flush.as_ref().is_none_or(|job| !job.is_writing()) {
            return Progress::Issued;
        }
        let Some(mut job) = request.flush.take() else {
            return Progress::Issued;
        };
        let (failed, outstanding) = (request.outcome.has_failed(), request.outstanding);
        if failed {
            match outstanding {
                0 => self.flush_failed(id, &job),
                _ => self.keep_flush(id, job),
            }
            return Progress::Issued;
        }
        if let (Step::Begin, Some(file)) = (job.step, self.volume.failed_sync()) {
            request.outcome.fail(OpError::Lost(file));
            self.finish(id);
            return Progress::Issued;
        }
        let progress = match job.step {
            Step::Begin => self.flush_begin(id, &mut job),
            Step::SyncData => {
                job.step = Step::WriteMap;
                Progress::More
            }
            Step::WriteMap => self.flush_write_map(id, &mut job, outstanding),
            Step::SyncMap => {
                self.flush_done(id, &job);
                return Progress::Issued;
            }
        };
        self.keep_flush(id, job);
        progress
    }

    fn keep_flush(&mut self, id: RequestId, job: Box<FlushJob>) {
        if let Some(request) = self.requests.get_mut(id) {
            request.flush = Some(job);
        }
    }

    fn flush_begin(&mut self, id: RequestId, job: &mut FlushJob) -> Progress {
        if !self.store.has_room() {
            return Progress::NoRoom;
        }
        if !self.volume.try_begin_flush() {
            return Progress::InUse;
        }
        // The copy comes before the sync: whatever it calls data was completely written before it
        // was called so, hence before the sync.
        job.sectors = self.volume.map().take_dirty();
        job.states = job
            .sectors
            .iter()
            .map(|s| self.volume.map().sector_states(*s))
            .collect();
        job.step = Step::SyncData;
        self.flush_sync(id, FailedSync::Data);
        Progress::Issued
    }

    /// Writes runs of neighbouring sectors, each from one buffer.
    fn flush_write_map(&mut self, id: RequestId, job: &mut FlushJob, outstanding: u32) -> Progress {
        if job.written == job.sectors.len() {
            if outstanding > 0 {
                return Progress::Issued;
            }
            if !self.store.has_room() {
                return Progress::NoRoom;
            }
            job.step = Step::SyncMap;
            if job.sectors.is_empty() && self.volume.is_map_synced() {
                return Progress::More;
            }
            self.flush_sync(id, FailedSync::Map);
            return Progress::Issued;
        }
        if !self.store.has_room() {
            return Progress::NoRoom;
        }
        let Some(mut buffer) = self.pool.take() else {
            return Progress::NoRoom;
        };
        let first = job.sectors[job.written];
        let mut count = 0;
        for into in buffer.as_mut_slice().as_chunks_mut::<SECTOR_LEN>().0 {
            let Some(sector) = job.sectors.get(job.written + count) else {
                break;
            };
            if *sector != first + count as u64 {
                break;
            }
            *into = format::encode_sector(*sector, &job.states[job.written + count]);
            count += 1;
        }
        job.written += count;
        let (file, at) = (StoreFile::Map, format::sector_offset(first));
        let op = StoreOp::Write {
            file,
            at,
            len: count * SECTOR_LEN,
            buffer,
        };
        self.flush_operation(id, Piece::WriteMap { request: id }, op);
        Progress::More
    }

    fn flush_sync(&mut self, id: RequestId, what: FailedSync) {
        let file = match what {
            FailedSync::Data => StoreFile::TOP,
            FailedSync::Map => StoreFile::Map,
        };
        let piece = Piece::Sync {
            request: id,
            file: what,
        };
        self.flush_operation(id, piece, StoreOp::Sync { file });
    }

    fn flush_operation(&mut self, id: RequestId, piece: Piece, op: StoreOp) {
        if let Some(request) = self.requests.get_mut(id) {
            request.outstanding += 1;
        }
        self.submit_piece(piece, op);
    }

    /// Notes that a sync failed, the one place that does.
    pub(super) fn sync_failed(&mut self, file: FailedSync, error: StoreError) -> OpError {
        self.volume.set_failed_sync(file, &error);
        OpError::SyncFailed {
            file,
            source: Arc::new(error),
        }
    }

    fn flush_done(&mut self, id: RequestId, job: &FlushJob) {
        // Whoever overwrites discarded blocks syncs the data as well, and may have met what the kernel
        // says only once.
        if let Some(file) = self.volume.failed_sync() {
            self.fail(id, OpError::Lost(file));
            return self.flush_failed(id, job);
        }
        for (sector, states) in job.sectors.iter().zip(&job.states) {
            held_runs(*sector, states, |run| {
                self.punches.add(run, self.volume.flushes())
            });
        }
        self.volume.set_map_synced();
        self.volume.end_flush();
        self.finish(id);
    }

    /// Nothing of the copy may be taken for durable: the next flush writes it again.
    fn flush_failed(&mut self, id: RequestId, job: &FlushJob) {
        for sector in &job.sectors {
            self.volume.map().mark_dirty(*sector);
        }
        self.volume.end_flush();
        self.finish(id);
    }

    /// Begins no more holes: what is due is found again by a later flush.
    pub fn forget_punches(&mut self) {
        for Punch { blocks, .. } in self.punches.queue.drain(..) {
            self.volume
                .map()
                .mark_dirty(blocks.start / BLOCKS_PER_SECTOR);
        }
    }

    /// Starts some of the holes that are due.
    pub(super) fn punch_some(&mut self) {
        while self.punches.under_way < PUNCHES_AT_ONCE && self.store.has_room() {
            let Some(blocks) = self.punches.queue.pop_front() else {
                return;
            };
            self.punch(blocks);
        }
    }

    fn punch(&mut self, Punch { blocks, flush }: Punch) {
        let (map, locks) = (self.volume.map(), self.volume.locks());
        if !locks.try_exclusive(blocks.clone()) {
            // In use: the next flush finds it again.
            map.mark_dirty(blocks.start / BLOCKS_PER_SECTOR);
            return;
        }
        // A flush that begins after this look copies the blocks as they are now: they cannot
        // change while we have them alone.
        if self.volume.flushes() != flush {
            locks.release_exclusive(blocks.clone());
            map.mark_dirty(blocks.start / BLOCKS_PER_SECTOR);
            return;
        }
        // The guest may have written some of them since the flush copied the map.
        let held = |block: &u64| map.get(*block) == BlockState::ZeroHeld;
        let start = blocks.clone().find(held).unwrap_or(blocks.end);
        let end = (start..blocks.end)
            .find(|block| !held(block))
            .unwrap_or(blocks.end);
        locks.release_exclusive(blocks.start..start);
        locks.release_exclusive(end..blocks.end);
        if end < blocks.end {
            self.punches.queue.push_front(Punch {
                blocks: end..blocks.end,
                flush,
            });
        }
        if start == end {
            return;
        }
        self.punches.under_way += 1;
        match self.punches.overwrite {
            true => self.overwrite(start..end, 0, None),
            false => self.make_hole(start..end),
        }
    }

    fn make_hole(&mut self, blocks: Range<u64>) {
        let op = StoreOp::Punch {
            at: blocks.start * BLOCK_SIZE,
            len: (blocks.end - blocks.start) * BLOCK_SIZE,
        };
        self.submit_piece(Piece::Punch { blocks }, op);
    }

    /// Writes random bytes over the next buffer's worth of what is to become a hole. The durable map
    /// says zeros already, so nobody reads there, and the blocks are ours alone until the hole is made.
    fn overwrite(&mut self, blocks: Range<u64>, done: u64, buffer: Option<IoBuffer>) {
        let next = blocks.start + done;
        let count = (blocks.end - next).min(BUFFER_LEN as u64 / BLOCK_SIZE);
        let Some(mut buffer) = buffer.or_else(|| self.pool.take()) else {
            return self.give_back_later(blocks);
        };
        let len = (count * BLOCK_SIZE) as usize;
        if let Err(error) = getrandom::fill(&mut buffer.as_mut_slice()[..len]) {
            log::warn!("no random bytes to overwrite discarded blocks with: {error}");
            self.pool.put(buffer);
            return self.give_back_later(blocks);
        }
        let done = done + count;
        let op = StoreOp::Write {
            file: StoreFile::TOP,
            at: next * BLOCK_SIZE,
            len,
            buffer,
        };
        self.submit_piece(Piece::Overwrite { blocks, done }, op);
    }

    pub(super) fn overwritten(
        &mut self,
        blocks: Range<u64>,
        done: u64,
        result: Result<(), StoreError>,
        buffer: Option<IoBuffer>,
    ) {
        if result.is_ok() && blocks.start + done < blocks.end {
            return self.overwrite(blocks, done, buffer);
        }
        if let Some(buffer) = buffer {
            self.pool.put(buffer);
        }
        if let Err(error) = result {
            log::warn!("discarded blocks cannot be overwritten: {error}; they are tried again");
            return self.give_back_later(blocks);
        }
        // Before the hole: a file system drops what it has not written yet of blocks that it frees.
        let file = StoreFile::TOP;
        self.submit_piece(Piece::SyncOverwritten { blocks }, StoreOp::Sync { file });
    }

    pub(super) fn overwritten_synced(
        &mut self,
        blocks: Range<u64>,
        result: Result<(), StoreError>,
    ) {
        if let Err(error) = result {
            let error = self.sync_failed(FailedSync::Data, error);
            log::error!("{error}");
            return self.give_back_later(blocks);
        }
        self.make_hole(blocks);
    }

    /// Lets go of blocks that are still held: the next flush finds them again.
    fn give_back_later(&mut self, blocks: Range<u64>) {
        self.punches.under_way -= 1;
        self.volume
            .map()
            .mark_dirty(blocks.start / BLOCKS_PER_SECTOR);
        self.volume.locks().release_exclusive(blocks);
    }

    pub(super) fn punched(&mut self, blocks: Range<u64>, result: Result<(), StoreError>) {
        self.punches.under_way -= 1;
        match result {
            Ok(()) => self.volume.map().set_released(blocks.clone()),
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::Unsupported => {
                if !self.punches.unsupported {
                    log::warn!("the file system cannot punch holes: discarded space stays in use");
                    self.punches.unsupported = true;
                }
                self.volume.map().set_released(blocks.clone());
            }
            Err(error) => log::warn!("{error}; the space is given back later"),
        }
        self.volume.locks().release_exclusive(blocks);
    }
}

impl FlushJob {
    /// In the one step that has several operations under way and issues more meanwhile.
    fn is_writing(&self) -> bool {
        self.step == Step::WriteMap
    }
}

impl Punches {
    /// Queues a run of blocks, cut into steps.
    fn add(&mut self, run: Range<u64>, flush: u64) {
        let mut start = run.start;
        while start < run.end {
            let end = run.end.min(start + PUNCH_STEP);
            self.queue.push_back(Punch {
                blocks: start..end,
                flush,
            });
            start = end;
        }
    }
}
