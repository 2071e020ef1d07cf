//! Marks of the blocks that requests of all queues are working on. No thread ever waits for a mark.
//!
//! Reads and writes of whole blocks share a block. An operation that no other may overlap within a block takes
//! it exclusively: filling the rest of a block around a smaller write, changing a block of a file that cannot
//! take smaller writes, discarding, punching a hole. An operation that does not get all of its blocks gives
//! back those that it got and tries again later, so there is no deadlock.
//!
//! Sharers that come before the last ones have gone could keep out for ever whoever is to have a block alone. So who
//! was refused says that it wants the first of its blocks ([`BlockMarks::want_alone`]), and nobody begins to share that
//! one until it has been had, or is not wanted any more. Who waits for another operation, instead of trying again,
//! holds no mark: those that keep it out end by themselves. The slot has one bit for all who want its blocks; it falls
//! with the first of them, and the others set it again when they try again.

use std::fmt;
use std::ops::Range;

use crate::must_complete::MustComplete;
use crate::sync::{AtomicU32, Ordering};

/// Slots, a power of two. Blocks that are this far apart share one, which only costs a retry.
const SLOTS: u64 = if cfg!(loom) { 4 } else { 1 << 16 };
/// Slots that lie together in a cache line.
const IN_LINE: u64 = if cfg!(loom) { 1 } else { 16 };
/// Blocks whose slots are in as many cache lines.
const LINES: u64 = SLOTS / IN_LINE;
/// The slot is held exclusively. The bits beneath count the sharers.
const EXCLUSIVE: u32 = 1 << 30;
/// Somebody waits to hold it exclusively: nobody begins to share it.
const WANTED: u32 = 1 << 31;

/// The most blocks of one mark.
pub const MAX_BLOCKS: u64 = 4096;

/// Blocks that are marked.
#[derive(Debug, Clone, Copy)]
struct Marked {
    start: u64,
    end: u64,
    exclusive: bool,
}

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.exclusive {
            "exclusive"
        } else {
            "shared"
        };
        write!(f, "the {how} mark of blocks {}..{}", self.start, self.end)
    }
}

/// A range of blocks that is marked until it is given to [`BlockMarks::release`].
#[must_use = "a mark that is dropped ends the process"]
pub struct BlockMark(MustComplete<Marked>);

impl BlockMark {
    fn new(blocks: Range<u64>, exclusive: bool) -> Self {
        let Range { start, end } = blocks;
        Self(MustComplete::new(Marked {
            start,
            end,
            exclusive,
        }))
    }

    /// The blocks.
    pub fn blocks(&self) -> Range<u64> {
        let marked = self.0.get();
        marked.start..marked.end
    }

    /// Leaves the blocks marked for ever: their volume is given up with all who use it.
    pub(crate) fn abandon(self) {
        self.0.complete();
    }
}

/// A block that somebody waits to have alone.
#[derive(Debug, Clone, Copy)]
struct WantedBlock(u64);

impl fmt::Display for WantedBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what wants block {} alone", self.0)
    }
}

/// A block that nobody begins to share, until this is given to [`BlockMarks::want_alone`], which gets it, or to
/// [`BlockMarks::want_no_more`].
#[must_use = "a block that is wanted for ever ends the process"]
pub struct Wanted(MustComplete<WantedBlock>);

/// Reader-writer marks for ranges of blocks.
pub struct BlockMarks {
    slots: Box<[AtomicU32]>,
}

impl Default for BlockMarks {
    fn default() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| AtomicU32::new(0)).collect(),
        }
    }
}

impl BlockMarks {
    /// Shares all of `blocks`, or none of them.
    pub fn try_shared(&self, blocks: Range<u64>) -> Option<BlockMark> {
        let all = self.try_all(
            blocks.clone(),
            // Neither bit is set.
            |held| (held < EXCLUSIVE - 1).then(|| held + 1),
            |slot| {
                slot.fetch_sub(1, Ordering::Release);
            },
        );
        all.then(|| BlockMark::new(blocks, false))
    }

    /// Takes all of `blocks` alone, or none of them.
    pub fn try_exclusive(&self, blocks: Range<u64>) -> Option<BlockMark> {
        let all = self.try_all(
            blocks.clone(),
            |held| (held & !WANTED == 0).then_some(held | EXCLUSIVE),
            |slot| {
                slot.fetch_and(!EXCLUSIVE, Ordering::Release);
            },
        );
        all.then(|| BlockMark::new(blocks, true))
    }

    /// Takes as many of the first of `blocks` alone as it finds free by halves: who needs many at once would wait for
    /// as long as others come and go.
    pub fn try_exclusive_first(&self, blocks: Range<u64>) -> Option<BlockMark> {
        let mut count = blocks.end - blocks.start;
        while count > 0 {
            let first = blocks.start..blocks.start + count;
            if let Some(mark) = self.try_exclusive(first) {
                return Some(mark);
            }
            count /= 2;
        }
        None
    }

    /// As [`BlockMarks::try_exclusive_first`]. When not even the first block is free, nobody begins to share that one
    /// any more: what comes back is to be given to the next try, which is to be made soon, or given up. `before` is
    /// what the last try gave back.
    ///
    /// # Errors
    /// The first block is in use.
    pub fn want_alone(
        &self,
        blocks: Range<u64>,
        before: Option<Wanted>,
    ) -> Result<BlockMark, Wanted> {
        let first = blocks.start;
        if let Some(mark) = self.try_exclusive_first(blocks) {
            if let Some(before) = before {
                self.want_no_more(before);
            }
            return Ok(mark);
        }
        let wanted = match before {
            Some(before) if before.0.get().0 == first => before,
            before => {
                if let Some(other) = before {
                    self.want_no_more(other);
                }
                Wanted(MustComplete::new(WantedBlock(first)))
            }
        };
        // Another who wanted a block of that slot may have taken the bit away.
        self.slot(first).fetch_or(WANTED, Ordering::Relaxed);
        Err(wanted)
    }

    /// The block is not waited for any more.
    pub fn want_no_more(&self, wanted: Wanted) {
        let WantedBlock(block) = wanted.0.complete();
        self.slot(block).fetch_and(!WANTED, Ordering::Relaxed);
    }

    /// Ends a mark.
    pub fn release(&self, mark: BlockMark) {
        let marked = mark.0.complete();
        self.unmark(marked.start..marked.end, marked.exclusive);
    }

    /// Ends the mark of all blocks but `kept`, which lie among them.
    pub fn narrow(&self, mark: BlockMark, kept: Range<u64>) -> BlockMark {
        let Marked {
            start,
            end,
            exclusive,
        } = mark.0.complete();
        debug_assert!(start <= kept.start && kept.end <= end);
        self.unmark(start..kept.start, exclusive);
        self.unmark(kept.end..end, exclusive);
        BlockMark::new(kept, exclusive)
    }

    fn unmark(&self, blocks: Range<u64>, exclusive: bool) {
        for block in blocks {
            let slot = self.slot(block);
            if exclusive {
                let before = slot.fetch_and(!EXCLUSIVE, Ordering::Release);
                debug_assert_eq!(before & !WANTED, EXCLUSIVE, "block {block}");
            } else {
                let before = slot.fetch_sub(1, Ordering::Release);
                let sharers = before & !WANTED;
                debug_assert!((1..EXCLUSIVE).contains(&sharers), "block {block}");
            }
        }
    }

    fn try_all(
        &self,
        blocks: Range<u64>,
        take: impl Fn(u32) -> Option<u32>,
        undo: impl Fn(&AtomicU32),
    ) -> bool {
        debug_assert!(blocks.end - blocks.start <= MAX_BLOCKS);
        for block in blocks.clone() {
            let taken = self
                .slot(block)
                .try_update(Ordering::Acquire, Ordering::Relaxed, &take)
                .is_ok();
            if !taken {
                (blocks.start..block).for_each(|held| undo(self.slot(held)));
                return false;
            }
        }
        true
    }

    fn slot(&self, block: u64) -> &AtomicU32 {
        &self.slots[place(block) as usize]
    }
}

/// The slot of a block. Blocks that are near to each other have theirs in cache lines that are not: queues that work side by
/// side would take the line from each other. Processors fetch lines in pairs, so a neighbour's is two lines on.
fn place(block: u64) -> u64 {
    let (line, in_line) = (block % LINES, block % SLOTS / LINES);
    let apart = line * 2 % LINES + line * 2 / LINES;
    apart * IN_LINE + in_line
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn each_slot_serves_blocks_that_are_far_apart() {
        let mut used = vec![false; SLOTS as usize];
        (0..SLOTS).for_each(|block| used[place(block) as usize] = true);
        assert!(used.iter().all(|used| *used), "all slots are used");
        for block in 0..2 * SLOTS {
            assert_eq!(place(block), place(block + SLOTS));
            let line = |block| place(block) / IN_LINE;
            // The longest mark that is alone meets itself nowhere.
            assert_eq!(line(block), line(block + MAX_BLOCKS));
            assert_ne!(place(block), place(block + MAX_BLOCKS));
            // No pair of lines has two of those that follow each other.
            for near in 1..IN_LINE {
                assert_ne!(line(block) / 2, line(block + near) / 2, "{block} + {near}");
            }
        }
    }

    #[test]
    fn the_first_of_many_are_taken_where_others_are_busy() {
        let marks = BlockMarks::default();
        let busy = marks.try_shared(300..301).unwrap();
        assert!(marks.try_exclusive(0..1024).is_none());
        let first = marks.try_exclusive_first(0..1024).unwrap();
        assert_eq!(first.blocks(), 0..256);
        let next = marks.try_exclusive_first(256..1024).unwrap();
        assert_eq!(next.blocks(), 256..280, "24 of 768 by halves");
        assert!(marks.try_exclusive_first(300..1024).is_none());
        for mark in [busy, first, next] {
            marks.release(mark);
        }
        let all = marks.try_exclusive_first(0..1024).unwrap();
        assert_eq!(all.blocks(), 0..1024);
        marks.release(all);
    }

    #[test]
    fn sharers_and_owners_exclude_each_other() {
        let marks = BlockMarks::default();
        let first = marks.try_shared(10..20).unwrap();
        let second = marks.try_shared(15..25).unwrap();
        assert!(marks.try_exclusive(19..21).is_none());
        marks.release(first);
        assert!(marks.try_exclusive(14..16).is_none());
        let owner = marks.try_exclusive(13..15).unwrap();
        assert!(marks.try_shared(0..100).is_none(), "14 is taken");
        let before = marks.try_exclusive(0..13);
        let before = before.expect("the failed call above gave everything back");
        marks.release(second);
        marks.release(before);
        marks.release(owner);
        let all = marks.try_exclusive(0..100).unwrap();
        let some = marks.narrow(all, 40..50);
        assert_eq!(some.blocks(), 40..50);
        assert!(marks.try_shared(39..41).is_none());
        for blocks in [0..40, 50..100] {
            marks.release(marks.try_exclusive(blocks).unwrap());
        }
        marks.release(some);
        marks.release(marks.try_exclusive(0..100).unwrap());
    }
    #[test]
    fn nobody_begins_to_share_what_somebody_wants_alone() {
        let marks = BlockMarks::default();
        let before = marks.try_shared(10..12).unwrap();
        let Err(wanted) = marks.want_alone(11..20, None) else {
            panic!("11 is shared");
        };
        assert!(marks.try_shared(0..100).is_none(), "11 is wanted");
        let beside = marks.try_shared(12..20).unwrap();
        let Err(wanted) = marks.want_alone(11..20, Some(wanted)) else {
            panic!("11 is shared still");
        };
        marks.release(before);
        assert!(marks.try_shared(11..12).is_none(), "11 is wanted still");
        let Ok(mark) = marks.want_alone(11..20, Some(wanted)) else {
            panic!("those before are gone");
        };
        assert_eq!(mark.blocks(), 11..12);
        marks.release(mark);
        marks.release(beside);
        marks.release(marks.try_shared(0..100).unwrap());
    }

    #[test]
    fn who_wants_a_block_no_more_keeps_nobody_out() {
        let marks = BlockMarks::default();
        let busy = marks.try_exclusive(3..5).unwrap();
        let want = |block: u64, before| match marks.want_alone(block..block + 1, before) {
            Err(wanted) => wanted,
            Ok(_) => panic!("{block} is taken"),
        };
        let (first, second) = (want(3, None), want(3, None));
        // One that wants another block instead.
        let first = want(4, Some(first));
        marks.want_no_more(first);
        // The bit is gone with the first of two, until the other tries again.
        let second = want(3, Some(second));
        marks.release(busy);
        assert!(marks.try_shared(3..4).is_none());
        marks.release(marks.try_shared(4..5).unwrap());
        // What somebody else has had meanwhile is wanted still.
        marks.release(marks.try_exclusive(3..4).unwrap());
        assert!(marks.try_shared(3..4).is_none());
        marks.want_no_more(second);
        marks.release(marks.try_shared(3..4).unwrap());
    }
}
