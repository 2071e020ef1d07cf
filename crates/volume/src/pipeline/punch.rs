//! Giving space back, in the background.
//!
//! One queue of a disk at a time goes over what is to be given back, one hole after the other, and rests
//! between two of them so that guests have the storage for the most part. It goes on by itself until
//! nothing is left that may become a hole; a flush that is done may make more.
//!
//! Discards that the guest does not flush are flushed after a few seconds, so that their space comes back
//! all the same.
//!
//! What cannot become a hole now is tried again: blocks that are in use soon, and after a failure when
//! some time has passed, longer each time.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::format::BLOCKS_PER_CHUNK;
use crate::store::{BUFFER_LEN, IoBuffer, Store, StoreError, StoreFile, StoreOp};
use crate::{BlockMap, FlushNumber, PunchTurn, VolumeError};
use keys::units::BLOCK_SIZE;

use super::OpError;
use super::drive::Pipeline;
use super::flush::Waiter;
use super::piece::Piece;

/// Blocks that are given back by one hole.
const STEP: u64 = 1024;
/// How long blocks are left alone that were in use.
const IN_USE: Duration = Duration::from_millis(5);
/// How long after a failure it is tried again, at first and at most.
const BACK_OFF: Duration = Duration::from_secs(1);
const MOST_BACK_OFF: Duration = Duration::from_secs(60);
/// How long discards wait for a flush of the guest.
const UNFLUSHED: Duration = Duration::from_secs(5);
/// How long it rests after a hole, as a multiple of the time that the hole took: while this queue has
/// requests under way, and while it has none.
const REST_BUSY: u32 = 3;
const REST_IDLE: u32 = 1;
/// The longest rest: one slow hole tells little about the next.
const MOST_REST: Duration = Duration::from_millis(100);

/// What one queue gives back.
pub(super) struct Punches {
    /// Held while it goes over the disk, or rests meanwhile.
    turn: Option<PunchTurn>,
    /// Where it goes on.
    at: u64,
    /// Where it goes on with space of inherited blocks, once no discarded ones are left, and what is left
    /// of the sector of these that it goes over.
    strays_at: u64,
    strays: Range<u64>,
    /// When the hole under way was begun.
    under_way: Option<Instant>,
    /// It does not go on before.
    due: Option<Instant>,
    /// Since when there are discards of this queue that no flush has covered, and which would.
    unflushed: Option<(Instant, FlushNumber)>,
    /// Blocks were left out of this pass since they were in use, or since they failed.
    left_out: bool,
    failed: bool,
    back_off: Duration,
    /// The failure that was told last.
    told: Option<io::ErrorKind>,
    /// None is begun.
    pub(super) stopped: bool,
    /// It does not rest.
    pub(super) hurries: bool,
    /// Old ciphertext is overwritten first.
    pub(super) overwrite: bool,
}

impl Default for Punches {
    fn default() -> Self {
        Self {
            turn: None,
            at: 0,
            strays_at: 0,
            strays: 0..0,
            under_way: None,
            due: None,
            unflushed: None,
            left_out: false,
            failed: false,
            back_off: BACK_OFF,
            told: None,
            stopped: false,
            hurries: false,
            overwrite: false,
        }
    }
}

impl Punches {
    /// When there is more to do, though nothing may have happened.
    pub(super) fn due(&self) -> Option<Instant> {
        let unflushed = self.unflushed.filter(|_| !self.stopped);
        let flush = unflushed.map(|(since, _)| since + UNFLUSHED);
        let hole = self.due.filter(|_| self.turn.is_some());
        hole.into_iter().chain(flush).min()
    }

    /// Whether it waits for a while since something failed.
    pub(super) fn has_failed(&self) -> bool {
        self.back_off > BACK_OFF
    }

    /// The next sector that may have space of inherited blocks, and is loaded.
    fn next_strays(&mut self, map: &BlockMap) -> Option<Range<u64>> {
        while let Some(sector) = map.take_strays(self.strays_at) {
            self.strays_at = sector.end;
            let error = match map.ensure(sector.clone()) {
                Ok(true) => return Some(sector),
                Ok(false) => {
                    map.put_strays_back(&sector);
                    self.left_out = true;
                    continue;
                }
                Err(error) => error,
            };
            // It is the chunk that cannot be loaded, whichever of its sectors is asked for.
            self.strays_at = (sector.start / BLOCKS_PER_CHUNK + 1) * BLOCKS_PER_CHUNK;
            if let VolumeError::MapDamaged { .. } = error {
                // A later try would find the same. Whoever opens the mended disk notes it again.
                map.forget_strays(sector.start..self.strays_at);
                continue;
            }
            map.put_strays_back(&sector);
            self.failed = true;
            self.tell(
                io::ErrorKind::Other,
                &format_args!("space that nothing needs is given back later: {error}"),
            );
        }
        None
    }

    /// Says what is wrong, once for each kind of failure.
    fn tell(&mut self, kind: io::ErrorKind, what: &dyn std::fmt::Display) {
        if self.told.replace(kind) != Some(kind) {
            log::warn!("{what}");
        }
    }
}

impl<S: Store> Pipeline<S> {
    /// Begins no more holes, until [`Pipeline::punch_on`]. One that is under way is finished.
    pub fn stop_punching(&mut self) {
        self.punches.stopped = true;
        self.end_turn_if_stopped();
    }

    /// Gives space back again.
    pub fn punch_on(&mut self) {
        self.punches.stopped = false;
        self.volume.flushes().set_holes_due();
    }

    /// Gives all space back without a rest that may be given back, or begins nothing more.
    pub(super) fn release_all(&mut self, now: bool) {
        self.punches.hurries = now;
        match now {
            true => self.punch_on(),
            false => self.stop_punching(),
        }
    }

    /// Whether space may still be given back, here or by another queue, and no failure has come in
    /// between.
    pub(super) fn is_releasing(&self) -> bool {
        let flushes = self.volume.flushes();
        (flushes.holes_are_due() || flushes.is_punching()) && !self.punches.has_failed()
    }

    /// Notes that blocks were discarded, whose space is given back after a flush.
    pub(super) fn note_discard(&mut self) {
        let since = match self.punches.unflushed {
            Some((since, _)) => since,
            None => self.store.now(),
        };
        self.punches.unflushed = Some((since, self.volume.flushes().covering()));
    }

    /// Flushes what was discarded, when the guest has not for a while.
    pub(super) fn flush_discards(&mut self) {
        let Some((since, flush)) = self.punches.unflushed else {
            return;
        };
        if self.volume.flushes().is_done(flush) {
            self.punches.unflushed = None;
        } else if !self.punches.stopped && self.store.now() >= since + UNFLUSHED {
            self.punches.unflushed = None;
            self.await_flush(Waiter::Discards);
        }
    }

    /// A write to blocks, which are marked, has failed: what space it took is given back.
    pub(super) fn write_failed(&mut self, blocks: Range<u64>) {
        self.volume.map().note_failed_write(blocks);
        self.volume.flushes().set_holes_due();
    }

    fn end_turn_if_stopped(&mut self) {
        if self.punches.stopped && self.punches.under_way.is_none() {
            // The next turn may be for another volume.
            let rest = std::mem::take(&mut self.punches.strays);
            if !rest.is_empty() {
                self.volume.map().put_strays_back(&rest);
            }
            self.punches.turn = None;
        }
    }

    /// Starts the next hole, if one may be made now.
    pub(super) fn punch_some(&mut self) {
        if self.punches.stopped || self.punches.under_way.is_some() || !self.store.has_room() {
            return;
        }
        if self.punches.turn.is_none() && !self.begin_pass() {
            return;
        }
        if self.punches.due.is_some_and(|due| self.store.now() < due) {
            return;
        }
        self.punches.due = None;
        if self.volume.failed_sync().is_some() {
            // What is durable is not known any more.
            self.punches.turn = None;
            return;
        }
        while let Some(blocks) = self.volume.map().next_held(self.punches.at, STEP) {
            self.punches.at = blocks.end;
            match self.mark_held(blocks) {
                Some(held) => {
                    self.punches.under_way = Some(self.store.now());
                    return match self.punches.overwrite {
                        true => self.overwrite(held, 0, None),
                        false => self.make_hole(held),
                    };
                }
                None => self.punches.left_out = true,
            }
        }
        match self.mark_stray() {
            Some(blocks) => {
                self.punches.under_way = Some(self.store.now());
                self.make_hole(blocks);
            }
            None => self.end_pass(),
        }
    }

    /// Marks the next inherited blocks that may have space, to be used by nobody else.
    fn mark_stray(&mut self) -> Option<Range<u64>> {
        let (map, locks) = (self.volume.map(), self.volume.locks());
        let punches = &mut self.punches;
        loop {
            if punches.strays.is_empty() {
                punches.strays = punches.next_strays(map)?;
            }
            let Some(run) = map.inherited_run(punches.strays.clone()) else {
                punches.strays = 0..0;
                continue;
            };
            let run = run.start..run.end.min(run.start + STEP);
            punches.strays.start = run.end;
            if locks.try_exclusive(run.clone()) {
                // Only now does it stay so.
                if map.inherited_run(run.clone()).as_ref() == Some(&run) {
                    return Some(run);
                }
                locks.release_exclusive(run.clone());
            }
            // The next pass takes it.
            map.put_strays_back(&run);
            punches.left_out = true;
        }
    }

    /// Takes the turn, if there is something to do; whether it has it.
    fn begin_pass(&mut self) -> bool {
        if !self.volume.flushes().holes_are_due() {
            return false;
        }
        self.punches.turn = self.volume.flushes().try_punch();
        self.punches.due = None;
        self.restart_pass();
        self.punches.turn.is_some()
    }

    fn restart_pass(&mut self) {
        let punches = &mut self.punches;
        (punches.at, punches.strays_at) = (0, 0);
        (punches.left_out, punches.failed) = (false, false);
    }

    /// Everything was gone over: what was left out is tried again after a while.
    fn end_pass(&mut self) {
        let now = self.store.now();
        let punches = &mut self.punches;
        let wait = match (punches.failed, punches.left_out) {
            (true, _) => {
                let wait = punches.back_off;
                punches.back_off = (wait * 2).min(MOST_BACK_OFF);
                wait
            }
            (false, true) => IN_USE,
            (false, false) => {
                punches.turn = None;
                return;
            }
        };
        punches.due = Some(now + wait);
        self.restart_pass();
    }

    /// Marks the first of the blocks that may become a hole, to be used by nobody else; none when they
    /// are in use, or have become something else.
    fn mark_held(&mut self, blocks: Range<u64>) -> Option<Range<u64>> {
        let (map, locks) = (self.volume.map(), self.volume.locks());
        if !locks.try_exclusive(blocks.clone()) {
            return None;
        }
        // Only now does it stay so. The guest may have written some of them, and discarded them again
        // without that being durable yet: then a hole would be read as ciphertext after a power loss.
        let held = map.held_run(blocks.clone());
        let held = held.filter(|held| map.may_release(held.start));
        let kept = held.clone().unwrap_or(blocks.end..blocks.end);
        locks.release_exclusive(blocks.start..kept.start);
        locks.release_exclusive(kept.end..blocks.end);
        if held.is_some() {
            self.punches.at = kept.end;
        }
        held
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
    #[expect(
        clippy::disallowed_methods,
        reason = "noise that keeps nothing secret, and the kernel makes it without memory of this process"
    )]
    fn overwrite(&mut self, blocks: Range<u64>, done: u64, buffer: Option<IoBuffer>) {
        let next = blocks.start + done;
        let count = (blocks.end - next).min(BUFFER_LEN as u64 / BLOCK_SIZE);
        let Some(mut buffer) = buffer.or_else(|| self.pool.take()) else {
            self.punches.left_out = true;
            return self.let_go(blocks);
        };
        let len = (count * BLOCK_SIZE) as usize;
        if let Err(error) = getrandom::fill(&mut buffer.as_mut_slice()[..len]) {
            self.pool.put(buffer);
            return self.hole_failed(blocks, io::ErrorKind::Other, &error);
        }
        let done = done + count;
        let op = StoreOp::Write {
            file: StoreFile::TOP,
            at: next * BLOCK_SIZE,
            len,
            durable: false,
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
        match result {
            // Before the hole: a file system drops what it has not written yet of blocks that it frees.
            Ok(()) => self.await_flush(Waiter::Overwritten(blocks)),
            Err(error) => self.hole_failed(blocks, error.kind(), &error),
        }
    }

    pub(super) fn overwrite_flushed(&mut self, blocks: Range<u64>, result: Result<(), OpError>) {
        match result {
            Ok(()) => self.make_hole(blocks),
            Err(error) => self.hole_failed(blocks, io::ErrorKind::Other, &error),
        }
    }

    pub(super) fn punched(&mut self, blocks: Range<u64>, result: Result<(), StoreError>) {
        match result {
            Ok(()) => {
                self.punches.told = None;
                self.punches.back_off = BACK_OFF;
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.punches.tell(
                io::ErrorKind::Unsupported,
                &"the file system cannot punch holes: discarded space stays in use",
            ),
            Err(error) => return self.hole_failed(blocks, error.kind(), &error),
        }
        self.volume.map().set_released(blocks.clone());
        self.let_go(blocks);
    }

    /// Leaves blocks to a later pass.
    fn hole_failed(
        &mut self,
        blocks: Range<u64>,
        kind: io::ErrorKind,
        error: &dyn std::fmt::Display,
    ) {
        self.punches.tell(
            kind,
            &format_args!("discarded space is given back later: {error}"),
        );
        self.punches.failed = true;
        self.volume.map().note_strays(blocks.clone());
        self.let_go(blocks);
    }

    /// Nothing is done to the blocks any more.
    fn let_go(&mut self, blocks: Range<u64>) {
        self.volume.locks().release_exclusive(blocks);
        let begun = self.punches.under_way.take();
        self.end_turn_if_stopped();
        if self.punches.hurries || self.punches.turn.is_none() {
            return;
        }
        let now = self.store.now();
        let took = begun.map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun));
        let rest = match self.requests.is_empty() {
            true => REST_IDLE,
            false => REST_BUSY,
        };
        self.punches.due = Some(now + (took * rest).min(MOST_REST));
    }
}
