//! Space of the data file that no state speaks of: of blocks to which a write failed, or to which one was not
//! flushed before the power went.
//!
//! A block that is inherited needs no space in the layer's data file, whatever is there, and its durable
//! state is the same: nothing becomes inherited again. So a hole can be made there at any time when no write
//! is under way.

use std::ops::Range;

use crate::format::{BLOCKS_PER_SECTOR, STATES_LEN};
use crate::{BlockState, VolumeError};

use super::block_map::{Becomes, BlockMap, LOW};

impl BlockMap {
    /// Notes that a write to blocks has failed, which may have taken space for them. They are marked, so that
    /// none becomes a hole meanwhile.
    pub fn note_failed_write(&self, blocks: Range<u64>) {
        let held = BlockState::ZeroHeld.repeated();
        self.change(blocks.clone(), Becomes::Held, |word, mask| {
            let zero = (word >> 1) & !word & LOW;
            word | (held & (zero | (zero << 1)) & mask)
        });
        self.note_strays(blocks);
    }

    /// Notes that blocks which are inherited may have space.
    pub fn note_strays(&self, blocks: Range<u64>) {
        let mut at = blocks.start;
        while let Some(run) = self.inherited_run(at..blocks.end) {
            let sector = run.start / BLOCKS_PER_SECTOR;
            self.notes.strays().insert(sector);
            at = ((sector + 1) * BLOCKS_PER_SECTOR).min(blocks.end);
        }
    }

    /// As [`BlockMap::note_strays`] for blocks of one sector that have space, and need not be loaded.
    ///
    /// # Errors
    /// As [`BlockMap::ensure`].
    pub fn find_strays(&self, blocks: Range<u64>) -> Result<(), VolumeError> {
        let sector = blocks.start / BLOCKS_PER_SECTOR;
        if self.is_loaded(sector) {
            self.note_strays(blocks);
            return Ok(());
        }
        let mut inherited = true;
        self.each_durable(sector..sector + 1, |_, states| {
            inherited = blocks.clone().any(|block| is_inherited(states, block));
        })?;
        if inherited {
            self.notes.strays().insert(sector);
        }
        Ok(())
    }

    /// The blocks of the first sector that begins at `from` or later and may have such space, which is noted
    /// no more.
    pub fn take_strays(&self, from: u64) -> Option<Range<u64>> {
        let strays = self.notes.strays();
        let sector = strays.next(from.div_ceil(BLOCKS_PER_SECTOR))?;
        strays.remove(sector);
        let start = sector * BLOCKS_PER_SECTOR;
        Some(start..(start + BLOCKS_PER_SECTOR).min(self.blocks))
    }

    /// Notes again what [`BlockMap::take_strays`] gave.
    pub fn put_strays_back(&self, blocks: &Range<u64>) {
        let sector = blocks.start / BLOCKS_PER_SECTOR;
        self.notes.strays().insert(sector);
    }

    /// Forgets such space of blocks, in whole sectors, until the volume is opened again.
    pub fn forget_strays(&self, blocks: Range<u64>) {
        let strays = self.notes.strays();
        let mut from = blocks.start.div_ceil(BLOCKS_PER_SECTOR);
        while let Some(sector) = strays.next(from)
            && sector * BLOCKS_PER_SECTOR < blocks.end
        {
            strays.remove(sector);
            from = sector + 1;
        }
    }

    /// The first run of blocks, which are loaded, that are inherited.
    pub fn inherited_run(&self, blocks: Range<u64>) -> Option<Range<u64>> {
        let inherited = |block: &u64| self.get(*block) == BlockState::Inherit;
        let start = blocks.clone().find(inherited)?;
        let end = (start..blocks.end).find(|block| !inherited(block));
        Some(start..end.unwrap_or(blocks.end))
    }
}

fn is_inherited(states: &[u8; STATES_LEN], block: u64) -> bool {
    let place = (block % BLOCKS_PER_SECTOR) as usize;
    let byte = states[place / 4];
    BlockState::from_bits(u64::from(byte >> (2 * (place % 4)))) == BlockState::Inherit
}
