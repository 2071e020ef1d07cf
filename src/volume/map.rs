//! The current map: two bits a block, read and changed by all queue threads without a lock.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::format::{self, BLOCKS_PER_SECTOR, STATES_LEN};
use super::mapped::MapWords;
use super::state::BlockState;

/// Blocks in a word.
const PER_WORD: u64 = 32;
/// Words in a map sector.
const WORDS_PER_SECTOR: u64 = STATES_LEN as u64 / 8;

/// Neighbouring blocks that are alike in having data or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Whether they are [`BlockState::Data`]; else they read as zeros.
    pub is_data: bool,
    /// How many.
    pub blocks: u64,
}

/// The current map of a layer and which of its sectors differ from the durable one.
pub struct BlockMap {
    words: MapWords,
    dirty: Box<[AtomicU64]>,
    blocks: u64,
}

impl BlockMap {
    /// A map over `words`, which must have [`BlockMap::words_for`] of them.
    pub(super) fn new(words: MapWords, blocks: u64) -> Self {
        let dirty = format::sectors(blocks).div_ceil(64);
        Self {
            words,
            dirty: (0..dirty).map(|_| AtomicU64::new(0)).collect(),
            blocks,
        }
    }

    /// Notes what `other`, a map of the same words and of no more blocks, has changed.
    pub(super) fn take_over_dirty(&self, other: &Self) {
        for (mine, its) in self.dirty.iter().zip(&other.dirty) {
            mine.fetch_or(its.load(Ordering::Acquire), Ordering::AcqRel);
        }
    }

    /// Words that the map of `blocks` blocks takes.
    pub(super) fn words_for(blocks: u64) -> usize {
        (format::sectors(blocks) * WORDS_PER_SECTOR) as usize
    }

    /// The state of one block.
    pub fn get(&self, block: u64) -> BlockState {
        let word = self.words.get()[(block / PER_WORD) as usize].load(Ordering::Acquire);
        BlockState::from_bits(word >> (2 * (block % PER_WORD)))
    }

    /// How many blocks from `first` on, at most `most`, have data or read as zeros.
    pub fn run(&self, first: u64, most: u64) -> Run {
        let is_data = self.get(first) == BlockState::Data;
        let end = (first + most).min(self.blocks);
        let mut next = first + 1;
        while next < end {
            let word = self.words.get()[(next / PER_WORD) as usize].load(Ordering::Acquire);
            // A bit is set for each block of the word that has data: state 01.
            let data = word & !(word >> 1) & 0x5555_5555_5555_5555;
            let other = if is_data {
                !data & 0x5555_5555_5555_5555
            } else {
                data
            };
            let ahead = other >> (2 * (next % PER_WORD));
            if ahead != 0 {
                next += u64::from(ahead.trailing_zeros() / 2);
                break;
            }
            next = (next / PER_WORD + 1) * PER_WORD;
        }
        Run {
            is_data,
            blocks: next.min(end) - first,
        }
    }

    /// How many blocks have data.
    pub fn data_blocks(&self) -> u64 {
        let data = |word: &AtomicU64| {
            let word = word.load(Ordering::Acquire);
            u64::from((word & !(word >> 1) & 0x5555_5555_5555_5555).count_ones())
        };
        self.words.get().iter().map(data).sum()
    }

    /// Makes all of `blocks` [`BlockState::Data`].
    pub fn set_data(&self, blocks: Range<u64>) {
        let data = BlockState::Data.repeated();
        self.change(blocks, |word, mask| (word & !mask) | (data & mask));
    }

    /// Makes the blocks of the range that have data read as zeros, as `to` says.
    pub fn set_zero(&self, blocks: Range<u64>, to: BlockState) {
        debug_assert!(matches!(to, BlockState::Zero | BlockState::ZeroHeld));
        let zero = to.repeated();
        self.change(blocks, |word, mask| {
            let data = word & !(word >> 1) & 0x5555_5555_5555_5555;
            let affected = (data | (data << 1)) & mask;
            (word & !affected) | (zero & affected)
        });
    }

    /// Turns [`BlockState::ZeroHeld`] of the range into [`BlockState::Zero`]: its space is free.
    pub fn set_released(&self, blocks: Range<u64>) {
        self.change(blocks, |word, mask| {
            let held = word & (word >> 1) & 0x5555_5555_5555_5555 & mask;
            word & !held
        });
    }

    /// Applies `to` to every word of the range; its mask has both bits of each block meant.
    fn change(&self, blocks: Range<u64>, to: impl Fn(u64, u64) -> u64) {
        let mut at = blocks.start;
        while at < blocks.end {
            let in_word = at % PER_WORD;
            let count = (PER_WORD - in_word).min(blocks.end - at);
            let mask = (u64::MAX >> (64 - 2 * count)) << (2 * in_word);
            let word = &self.words.get()[(at / PER_WORD) as usize];
            let update = |old| {
                let new = to(old, mask);
                (new != old).then_some(new)
            };
            if word
                .try_update(Ordering::AcqRel, Ordering::Acquire, update)
                .is_ok()
            {
                // After the state: a flush that clears this bit then sees the state (its swap
                // synchronises with this), and one that cleared it before finds it set again.
                self.mark_dirty(at / BLOCKS_PER_SECTOR);
            }
            at += count;
        }
    }

    /// Has the next flush write this map sector.
    pub fn mark_dirty(&self, sector: u64) {
        self.dirty[(sector / 64) as usize].fetch_or(1 << (sector % 64), Ordering::AcqRel);
    }

    /// Takes the set of dirty sectors, in rising order.
    pub fn take_dirty(&self) -> Vec<u64> {
        let mut sectors = Vec::new();
        for (index, word) in self.dirty.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::AcqRel);
            while bits != 0 {
                sectors.push(index as u64 * 64 + u64::from(bits.trailing_zeros()));
                bits &= bits - 1;
            }
        }
        sectors
    }

    /// The states of a map sector as the format has them.
    pub fn sector_states(&self, sector: u64) -> [u8; STATES_LEN] {
        let mut states = [0; STATES_LEN];
        for (bytes, word) in states.chunks_exact_mut(8).zip(self.sector_words(sector)) {
            bytes.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
        }
        states
    }

    /// Takes over the states of a map sector from the durable map.
    pub(super) fn load_sector(&self, sector: u64, states: &[u8; STATES_LEN]) {
        for (bytes, word) in states.chunks_exact(8).zip(self.sector_words(sector)) {
            let mut value = [0; 8];
            value.copy_from_slice(bytes);
            word.store(u64::from_le_bytes(value), Ordering::Release);
        }
    }

    fn sector_words(&self, sector: u64) -> &[AtomicU64] {
        let start = (sector * WORDS_PER_SECTOR) as usize;
        &self.words.get()[start..start + WORDS_PER_SECTOR as usize]
    }

    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }
}

/// The runs of [`BlockState::ZeroHeld`] blocks in the states of map sector `sector`.
pub fn held_runs(sector: u64, states: &[u8; STATES_LEN], mut found: impl FnMut(Range<u64>)) {
    let mut start = None;
    for index in 0..=BLOCKS_PER_SECTOR {
        let held = index < BLOCKS_PER_SECTOR
            && BlockState::from_bits(u64::from(states[(index / 4) as usize]) >> (2 * (index % 4)))
                == BlockState::ZeroHeld;
        let block = sector * BLOCKS_PER_SECTOR + index;
        match (held, start) {
            (true, None) => start = Some(block),
            (false, Some(first)) => {
                found(first..block);
                start = None;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(blocks: u64) -> BlockMap {
        BlockMap::new(MapWords::private(BlockMap::words_for(blocks)), blocks)
    }

    #[derive(Debug, Clone)]
    enum Change {
        Data(Range<u64>),
        Zero(Range<u64>, bool),
        Released(Range<u64>),
    }

    fn range() -> impl Strategy<Value = Range<u64>> {
        (0u64..5000, 0u64..300).prop_map(|(start, len)| start..(start + len).min(5000))
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            range().prop_map(Change::Data),
            (range(), any::<bool>()).prop_map(|(r, held)| Change::Zero(r, held)),
            range().prop_map(Change::Released),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_array(changes in prop::collection::vec(change(), 1..40), probe in 0u64..5000) {
            let map = map(5000);
            let mut model = vec![BlockState::Inherit; 5000];
            let mut dirty = std::collections::BTreeSet::new();
            for change in changes {
                let (range, to): (_, Box<dyn Fn(BlockState) -> BlockState>) = match change {
                    Change::Data(range) => {
                        map.set_data(range.clone());
                        (range, Box::new(|_| BlockState::Data))
                    }
                    Change::Zero(range, held) => {
                        let to = if held { BlockState::ZeroHeld } else { BlockState::Zero };
                        map.set_zero(range.clone(), to);
                        (range, Box::new(move |old| if old == BlockState::Data { to } else { old }))
                    }
                    Change::Released(range) => {
                        map.set_released(range.clone());
                        let to = |old| if old == BlockState::ZeroHeld { BlockState::Zero } else { old };
                        (range, Box::new(to))
                    }
                };
                for block in range {
                    let new = to(model[block as usize]);
                    if model[block as usize] != new {
                        dirty.insert(block / BLOCKS_PER_SECTOR);
                        model[block as usize] = new;
                    }
                }
            }
            for block in 0..5000 {
                prop_assert_eq!(map.get(block), model[block as usize], "block {}", block);
            }
            let same = |b: &&BlockState| (**b == BlockState::Data) == (model[probe as usize] == BlockState::Data);
            let run = model[probe as usize..].iter().take_while(same).count() as u64;
            prop_assert_eq!(map.run(probe, 5000).blocks, run);
            let data = model.iter().filter(|b| **b == BlockState::Data).count();
            prop_assert_eq!(map.data_blocks(), data as u64);
            prop_assert_eq!(map.take_dirty(), dirty.into_iter().collect::<Vec<_>>());

            let mut held = vec![];
            for sector in 0..format::sectors(5000) {
                held_runs(sector, &map.sector_states(sector), |run| held.extend(run));
            }
            let expected = (0..5000).filter(|b| model[*b as usize] == BlockState::ZeroHeld);
            prop_assert_eq!(held, expected.collect::<Vec<_>>());
        }
    }
}
