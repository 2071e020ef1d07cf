//! What changed of the map: which sectors a flush has to write, and where space is to be given back.

use std::ops::Range;

use crate::BlockState;
use crate::format::{self, BLOCKS_PER_SECTOR};
use crate::mapped::NOTE_WORDS;
use crate::notes::SectorSet;
use crate::sync::Ordering;

use super::block_map::{Becomes, BlockMap, Content, Run};
use super::load::LOADED;

impl BlockMap {
    /// Notes that blocks of a sector have changed. After their states: a flush that takes this note then
    /// sees them, one that took an earlier one finds it there again, and one that comes before it finds the
    /// sector among those that are being changed.
    pub(super) fn note(&self, sector: u64, becomes: Becomes) {
        match becomes {
            Becomes::Released => return self.notes.released().insert(sector),
            Becomes::Data | Becomes::Zeros | Becomes::Held => self.mark_dirty(sector),
        }
        match becomes {
            Becomes::Data => self.notes.filled(sector, self.flushes.covering()),
            Becomes::Held => {
                self.notes.discarded(sector, self.flushes.covering());
                self.notes.held().insert(sector);
            }
            Becomes::Zeros | Becomes::Released => {}
        }
    }

    /// Has the next flush write this map sector.
    pub fn mark_dirty(&self, sector: u64) {
        self.dirty().insert(sector);
    }

    fn dirty(&self) -> SectorSet<'_> {
        self.notes.dirty(self.words.dirty())
    }

    /// Takes over what a process that had the same words was to flush when it died: what was dirty, what
    /// a flush was writing, and what was being changed; with `all`, every sector that is loaded. No other thread
    /// may use the map.
    pub(crate) fn adopt_dirty(&self, all: bool) {
        self.adopt_changing();
        let (dirty, flushing) = (self.words.dirty(), self.words.flushing());
        self.mark_all_dirty(|index| match all {
            true => u64::MAX,
            // The latter after the former, as a flush that fails.
            false => {
                dirty[index].fetch_or(flushing[index].load(Ordering::SeqCst), Ordering::SeqCst);
                flushing[index].swap(0, Ordering::SeqCst) | dirty[index].load(Ordering::SeqCst)
            }
        });
    }

    /// Finds what is dirty by the words of a map that it takes the place of, of no more blocks. A flush
    /// may be under way.
    pub(crate) fn find_dirty(&self) {
        let dirty = self.words.dirty();
        self.mark_all_dirty(|index| dirty[index].load(Ordering::SeqCst));
    }

    /// Marks the sectors of loaded chunks dirty that `which` has a bit for, in a word of 64 sectors.
    fn mark_all_dirty(&self, which: impl Fn(usize) -> u64) {
        let sectors = format::sectors(self.blocks);
        let flags = self.words.flags().iter().enumerate();
        for (chunk, _) in flags.filter(|(_, flag)| flag.load(Ordering::Acquire) == LOADED) {
            for index in chunk * NOTE_WORDS..(chunk + 1) * NOTE_WORDS {
                let mut bits = which(index);
                while bits != 0 {
                    let sector = index as u64 * 64 + u64::from(bits.trailing_zeros());
                    if sector < sectors {
                        self.mark_dirty(sector);
                    }
                    bits &= bits - 1;
                }
            }
        }
    }

    /// Takes the set of sectors that a flush has to write into `sectors`, which is empty, in rising order;
    /// if there are any, with at most `more` of those that it may write as well. Until
    /// [`BlockMap::end_flush`] they are known to be under way, also to a later process.
    pub fn take_dirty(&self, sectors: &mut Vec<u64>, more: usize) {
        // First: what is not being changed any more was noted before.
        self.note_changing();
        let flushing = self.words.flushing();
        self.dirty().take(sectors, |index, bits| {
            flushing[index].fetch_or(bits, Ordering::SeqCst);
        });
        if sectors.is_empty() {
            return;
        }
        let released = self.notes.released();
        for sector in sectors.iter() {
            released.remove(*sector);
        }
        let (mut from, taken) = (0, sectors.len());
        while sectors.len() < taken + more
            && let Some(sector) = released.next(from)
        {
            released.remove(sector);
            sectors.push(sector);
            from = sector + 1;
        }
        sectors.sort_unstable();
    }

    /// Notes that no flush is writing `sectors` any more: they are durable, or dirty again.
    pub fn end_flush(&self, sectors: &[u64]) {
        let flushing = self.words.flushing();
        for sector in sectors {
            flushing[(sector / 64) as usize].fetch_and(!(1 << (sector % 64)), Ordering::SeqCst);
        }
    }

    /// Has the next flush write every sector of which the durable map names space that was given back.
    /// Whether there are any.
    pub fn mark_released_dirty(&self) -> bool {
        let mut sectors = Vec::new();
        self.notes.released().take(&mut sectors, |_, _| {});
        sectors.iter().for_each(|sector| self.mark_dirty(*sector));
        !sectors.is_empty()
    }

    /// Whether the durable map says of all `blocks`, which are marked so that none can become anything
    /// else, that they are data.
    pub fn has_durable_data(&self, blocks: Range<u64>) -> bool {
        if blocks.is_empty() {
            return true;
        }
        let count = blocks.end - blocks.start;
        let all = Run {
            what: Content::Data,
            blocks: count,
        };
        let mut sectors = blocks.start / BLOCKS_PER_SECTOR..blocks.end.div_ceil(BLOCKS_PER_SECTOR);
        // In this order: who has changed a state says so until it is noted.
        self.run(blocks.start, count) == all
            && !self.is_changing(&sectors)
            && sectors.all(|sector| self.flushes.is_done(self.notes.fill(sector)))
    }

    /// Whether the durable map says of all blocks of the sector of `block` that are
    /// [`BlockState::ZeroHeld`] that they are zeros. It stays so of a block that is marked.
    pub fn may_release(&self, block: u64) -> bool {
        self.flushes
            .is_done(self.notes.discard(block / BLOCKS_PER_SECTOR))
    }

    /// The first blocks from `from` on, at most `most`, that are [`BlockState::ZeroHeld`] and may be given
    /// back.
    pub fn next_held(&self, mut from: u64, most: u64) -> Option<Range<u64>> {
        let held = self.notes.held();
        while let Some(sector) = held.next(from / BLOCKS_PER_SECTOR) {
            let start = sector * BLOCKS_PER_SECTOR;
            let end = (start + BLOCKS_PER_SECTOR).min(self.blocks);
            let first = start.max(from);
            from = start + BLOCKS_PER_SECTOR;
            if !self.may_release(start) {
                continue;
            }
            if let Some(run) = self.held_run(first..end) {
                return Some(run.start..run.end.min(run.start + most));
            }
            if first == start {
                // Nothing is held: forget it, unless something comes meanwhile.
                held.remove(sector);
                if self.held_run(start..end).is_some() {
                    held.insert(sector);
                }
            }
        }
        None
    }

    /// The first run of blocks in a part of a sector that are [`BlockState::ZeroHeld`].
    pub fn held_run(&self, blocks: Range<u64>) -> Option<Range<u64>> {
        let held = |block: &u64| self.get(*block) == BlockState::ZeroHeld;
        let start = blocks.clone().find(held)?;
        let end = (start..blocks.end).find(|block| !held(block));
        Some(start..end.unwrap_or(blocks.end))
    }
}
