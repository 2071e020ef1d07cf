//! Giving space back, in the background.
//!
//! One queue of a disk at a time goes over what is to be given back, one hole after the other, and rests
//! between two of them so that guests have the storage most of the time. It continues by itself until
//! nothing is left that may become a hole; a flush that is done may make more.
//!
//! Discards that the guest does not flush are flushed after a few seconds, so that their space comes back
//! all the same.
//!
//! What cannot become a hole now is tried again: blocks that are in use soon, and after a failure when
//! some time has passed, longer each time.

use std::io;
use std::ops::Range;
use std::time::Duration;

use crate::marks::BlockMark;
use crate::store::{BUFFER_LEN, IoBuffer, Store, StoreError, StoreFile, StoreOp};
use keys::units::BLOCK_SIZE;

use super::RequestError;
use super::flush_job::Waiter;
use super::piece::Piece;
use super::punches::{BACK_OFF, UNFLUSHED};
use super::scheduler::Pipeline;

/// Blocks that are given back by one hole.
const STEP: u64 = 1024;
/// How long blocks are left alone that were in use.
const IN_USE: Duration = Duration::from_millis(5);
/// The longest time between a failure and the next try.
const MAX_BACK_OFF: Duration = Duration::from_secs(60);
/// How long it rests after a hole, as a multiple of the time that the hole took: while this queue has
/// requests under way, and while it has none.
const REST_BUSY: u32 = 3;
const REST_IDLE: u32 = 1;
/// The longest rest: one slow hole tells little about the next.
const MAX_REST: Duration = Duration::from_millis(100);

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
                Some(held) => return self.give_back(held),
                None => self.punches.left_out = true,
            }
        }
        match self.mark_stray() {
            Some(blocks) => self.give_back(blocks),
            None => self.end_pass(),
        }
    }

    fn give_back(&mut self, mark: BlockMark) {
        self.punches.under_way = Some(self.store.now());
        match self.punches.overwrite {
            true => self.overwrite(mark, 0, None),
            false => self.make_hole(mark),
        }
    }

    /// Marks the next inherited blocks that may have space, exclusively.
    fn mark_stray(&mut self) -> Option<BlockMark> {
        let (map, marks) = (self.volume.map(), self.volume.marks());
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
            if let Some(mark) = marks.try_exclusive(run.clone()) {
                // Only now does it stay so.
                if map.inherited_run(run.clone()).as_ref() == Some(&run) {
                    return Some(mark);
                }
                marks.release(mark);
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
                punches.back_off = (wait * 2).min(MAX_BACK_OFF);
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

    /// Marks the first of the blocks that may become a hole, exclusively; none when they
    /// are in use, or have become something else.
    fn mark_held(&mut self, blocks: Range<u64>) -> Option<BlockMark> {
        let (map, marks) = (self.volume.map(), self.volume.marks());
        let mark = marks.try_exclusive(blocks.clone())?;
        // Only now does it stay so. The guest may have written some of them, and discarded them again
        // without that being durable yet: then a hole would be read as ciphertext after a power loss.
        let held = map.held_run(blocks);
        match held.filter(|held| map.may_release(held.start)) {
            Some(held) => {
                self.punches.at = held.end;
                Some(marks.narrow(mark, held))
            }
            None => {
                marks.release(mark);
                None
            }
        }
    }

    fn make_hole(&mut self, mark: BlockMark) {
        let blocks = mark.blocks();
        let op = StoreOp::Punch {
            at: blocks.start * BLOCK_SIZE,
            len: (blocks.end - blocks.start) * BLOCK_SIZE,
        };
        self.submit_piece(Piece::Punch { mark }, op);
    }

    /// Writes random bytes over the next buffer's worth of what is to become a hole. The durable map
    /// says zeros already, or that the blocks are inherited, so no request reads there, and the mark is exclusive
    /// until the hole is made.
    #[expect(
        clippy::disallowed_methods,
        reason = "noise that keeps nothing secret, and the kernel makes it without memory of this process"
    )]
    fn overwrite(&mut self, mark: BlockMark, done: u64, buffer: Option<IoBuffer>) {
        let blocks = mark.blocks();
        let next = blocks.start + done;
        let count = (blocks.end - next).min(BUFFER_LEN as u64 / BLOCK_SIZE);
        let Some(mut buffer) = buffer.or_else(|| self.pool.take()) else {
            self.punches.left_out = true;
            return self.release_hole(mark);
        };
        let len = (count * BLOCK_SIZE) as usize;
        if let Err(error) = getrandom::fill(&mut buffer.as_mut_slice()[..len]) {
            self.pool.put(buffer);
            return self.hole_failed(mark, io::ErrorKind::Other, &error);
        }
        let done = done + count;
        let op = StoreOp::Write {
            file: StoreFile::TOP,
            at: next * BLOCK_SIZE,
            len,
            durable: false,
            buffer,
        };
        self.submit_piece(Piece::Overwrite { mark, done }, op);
    }

    pub(super) fn overwritten(
        &mut self,
        mark: BlockMark,
        done: u64,
        result: Result<(), StoreError>,
        buffer: Option<IoBuffer>,
    ) {
        let blocks = mark.blocks();
        let result = match result {
            // Of inherited blocks it is not known which have space: those that get none had none.
            Err(error) if error.is_no_space() && self.is_stray(&mark) => Ok(()),
            result => result,
        };
        if result.is_ok() && blocks.start + done < blocks.end {
            return self.overwrite(mark, done, buffer);
        }
        if let Some(buffer) = buffer {
            self.pool.put(buffer);
        }
        match result {
            // Before the hole: a file system drops what it has not written yet of blocks that it frees.
            Ok(()) => self.await_flush(Waiter::Overwritten(mark)),
            Err(error) => self.hole_failed(mark, error.kind(), &error),
        }
    }

    fn is_stray(&self, mark: &BlockMark) -> bool {
        let blocks = mark.blocks();
        self.volume.map().inherited_run(blocks.clone()) == Some(blocks)
    }

    pub(super) fn overwrite_flushed(&mut self, mark: BlockMark, result: Result<(), RequestError>) {
        match result {
            Ok(()) => self.make_hole(mark),
            Err(error) => self.hole_failed(mark, io::ErrorKind::Other, &error),
        }
    }

    pub(super) fn punched(&mut self, mark: BlockMark, result: Result<(), StoreError>) {
        match result {
            Ok(()) => {
                self.punches.told = None;
                self.punches.back_off = BACK_OFF;
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.punches.tell(
                io::ErrorKind::Unsupported,
                &"the file system cannot punch holes: discarded space stays in use",
            ),
            Err(error) => return self.hole_failed(mark, error.kind(), &error),
        }
        self.volume.map().set_released(mark.blocks());
        self.release_hole(mark);
    }

    /// Leaves blocks to a later pass.
    fn hole_failed(&mut self, mark: BlockMark, kind: io::ErrorKind, error: &dyn std::fmt::Display) {
        self.punches.tell(
            kind,
            &format_args!("discarded space is given back later: {error}"),
        );
        self.punches.failed = true;
        self.volume.map().note_strays(mark.blocks());
        self.release_hole(mark);
    }

    /// Nothing is done to the blocks any more.
    fn release_hole(&mut self, mark: BlockMark) {
        self.volume.marks().release(mark);
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
        self.punches.due = Some(now + (took * rest).min(MAX_REST));
    }
}
