//! The current map: two bits a block, read and changed by all queue threads without a lock.
//!
//! It is loaded from the map file in chunks, each when it is first asked for, so that a large disk
//! takes memory only for the parts of it that are used. A chunk is loaded by whoever comes first;
//! others are told to come again.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::store::ReadAt;

use super::VolumeError;
use super::format::{
    self, BLOCKS_PER_CHUNK, BLOCKS_PER_SECTOR, SECTOR_LEN, SECTORS_PER_CHUNK, STATES_LEN,
};
use super::mapped::MapWords;
use super::state::BlockState;

/// Blocks in a word.
const PER_WORD: u64 = 32;
/// Words in a map sector.
const WORDS_PER_SECTOR: u64 = STATES_LEN as u64 / 8;
/// The lower bit of each of the 32 places of a word.
const LOW: u64 = 0x5555_5555_5555_5555;

/// How often a chunk is read that seems damaged: another process may be writing a sector of it, as a
/// merge does with a frozen layer's map, and a reader can meet it half written.
const TRIES: u32 = 3;

/// How far a chunk is loaded.
const UNLOADED: u64 = 0;
const LOADING: u64 = 1;
const LOADED: u64 = 2;

/// The durable map, from wherever it is read.
pub type MapFile = Arc<dyn ReadAt + Send + Sync>;

/// What the map of one layer says of neighbouring blocks that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// That of the layer beneath: [`BlockState::Inherit`].
    Inherited,
    /// The layer's data file has it: [`BlockState::Data`].
    Data,
    /// Zeros: [`BlockState::Zero`] or [`BlockState::ZeroHeld`].
    Zeros,
}

/// Neighbouring blocks that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run<T> {
    /// In what.
    pub what: T,
    /// How many there are.
    pub blocks: u64,
}

/// The current map of a layer and which of its sectors differ from the durable one.
pub struct BlockMap {
    words: MapWords,
    durable: MapFile,
    dirty: Box<[AtomicU64]>,
    blocks: u64,
}

impl BlockMap {
    /// A map over `words`, which must have [`BlockMap::words_for`] of them, and a flag for each of
    /// the chunks of `blocks`.
    pub(super) fn new(words: MapWords, durable: MapFile, blocks: u64) -> Self {
        let dirty = format::sectors(blocks).div_ceil(64);
        Self {
            words,
            durable,
            dirty: (0..dirty).map(|_| AtomicU64::new(0)).collect(),
            blocks,
        }
    }

    /// A map in this process alone, of which nothing is loaded.
    pub(super) fn private(durable: MapFile, blocks: u64) -> Result<Self, VolumeError> {
        let chunks = format::chunks(blocks) as usize;
        let words = MapWords::private(chunks, Self::words_for(blocks)).map_err(no_memory)?;
        Ok(Self::new(words, durable, blocks))
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

    /// The file that the map is loaded from.
    pub(super) fn durable(&self) -> &MapFile {
        &self.durable
    }

    /// Whether a sync of the layer has failed, as [`FailedSync`](super::FailedSync) has it.
    pub(super) fn failed_sync(&self) -> &AtomicU64 {
        self.words.failed_sync()
    }

    /// Has the map of `blocks` in memory: whether it is. When it is not, somebody else is loading
    /// it, and it is to be asked for again soon. Everything else here may only be called for blocks
    /// that were loaded.
    ///
    /// # Errors
    /// [`VolumeError`] when it cannot be read or is damaged; it can be tried again.
    pub fn ensure(&self, blocks: Range<u64>) -> Result<bool, VolumeError> {
        if blocks.is_empty() {
            return Ok(true);
        }
        let flags = self.words.flags();
        for chunk in blocks.start / BLOCKS_PER_CHUNK..=(blocks.end - 1) / BLOCKS_PER_CHUNK {
            let flag = &flags[chunk as usize];
            if flag.load(Ordering::Acquire) == LOADED {
                continue;
            }
            if !self.load(chunk, flag)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Loads all of it. There must be nobody else who does.
    ///
    /// # Errors
    /// As [`BlockMap::ensure`].
    pub fn load_all(&self) -> Result<(), VolumeError> {
        while !self.ensure(0..self.blocks)? {
            std::thread::yield_now();
        }
        Ok(())
    }

    #[cold]
    fn load(&self, chunk: u64, flag: &AtomicU64) -> Result<bool, VolumeError> {
        let mine = flag.compare_exchange(UNLOADED, LOADING, Ordering::AcqRel, Ordering::Acquire);
        if let Err(found) = mine {
            return Ok(found == LOADED);
        }
        let loaded = self.read_chunk(chunk);
        let now = if loaded.is_ok() { LOADED } else { UNLOADED };
        flag.store(now, Ordering::Release);
        loaded.map(|()| true)
    }

    fn read_chunk(&self, chunk: u64) -> Result<(), VolumeError> {
        let first = chunk * SECTORS_PER_CHUNK;
        let end = (first + SECTORS_PER_CHUNK).min(format::sectors(self.blocks));
        // All of the chunk, also what the disk has not of it yet: it may grow.
        let words = SECTORS_PER_CHUNK * WORDS_PER_SECTOR;
        self.words
            .allocate((first * WORDS_PER_SECTOR) as usize, words as usize)
            .map_err(no_memory)?;
        let mut tries = TRIES;
        loop {
            match self.read_sectors(first..end) {
                Err(VolumeError::MapDamaged { .. }) if tries > 1 => tries -= 1,
                read => return read,
            }
        }
    }

    fn read_sectors(&self, sectors: Range<u64>) -> Result<(), VolumeError> {
        let mut bytes = vec![0; (sectors.end - sectors.start) as usize * SECTOR_LEN];
        self.durable
            .read_exact_at(&mut bytes, format::sector_offset(sectors.start))
            .map_err(|source| VolumeError::Io {
                what: "read the map file",
                source,
            })?;
        for (sector, raw) in sectors.zip(bytes.as_chunks::<SECTOR_LEN>().0) {
            if let Some(states) = format::decode_sector(sector, raw)? {
                self.load_sector(sector, states);
            }
        }
        Ok(())
    }

    /// Forgets who was loading when a process died that had the same words.
    pub(super) fn forget_loaders(&self) {
        for flag in self.words.flags() {
            let _ = flag.compare_exchange(LOADING, UNLOADED, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Whether the chunk of a map sector is loaded already.
    pub(super) fn is_loaded(&self, sector: u64) -> bool {
        let chunk = (sector / SECTORS_PER_CHUNK) as usize;
        self.words.flags()[chunk].load(Ordering::Acquire) == LOADED
    }

    /// The state of one block.
    pub fn get(&self, block: u64) -> BlockState {
        BlockState::from_bits(self.word(block) >> (2 * (block % PER_WORD)))
    }

    fn word(&self, block: u64) -> u64 {
        debug_assert!(self.is_loaded(block / BLOCKS_PER_SECTOR), "not loaded");
        self.words.states()[(block / PER_WORD) as usize].load(Ordering::Acquire)
    }

    /// What the map says of the blocks from `first` on, and of how many, at most `most`, it says so.
    pub fn run(&self, first: u64, most: u64) -> Run<Content> {
        let what = Content::of(self.get(first));
        let end = (first.saturating_add(most)).min(self.blocks);
        let mut next = first + 1;
        while next < end {
            let other = what.others_in(self.word(next)) >> (2 * (next % PER_WORD));
            if other != 0 {
                next += u64::from(other.trailing_zeros() / 2);
                break;
            }
            next = (next / PER_WORD + 1) * PER_WORD;
        }
        Run {
            what,
            blocks: next.min(end) - first,
        }
    }

    /// As [`BlockMap::run`] for blocks that need not be loaded yet, but not beyond their chunk;
    /// `None` while somebody else loads them.
    ///
    /// # Errors
    /// As [`BlockMap::ensure`].
    pub fn run_in_chunk(&self, first: u64, most: u64) -> Result<Option<Run<Content>>, VolumeError> {
        if !self.ensure(first..first + 1)? {
            return Ok(None);
        }
        let to_end = BLOCKS_PER_CHUNK - first % BLOCKS_PER_CHUNK;
        Ok(Some(self.run(first, most.min(to_end))))
    }

    /// How many blocks have data, of those in the chunks that are loaded.
    pub fn data_blocks(&self) -> u64 {
        let sectors = 0..format::sectors(self.blocks);
        let loaded = sectors.filter(|sector| self.is_loaded(*sector));
        loaded
            .flat_map(|sector| self.sector_words(sector))
            .map(|word| u64::from(data_in(word.load(Ordering::Acquire)).count_ones()))
            .sum()
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
            let data = data_in(word);
            let affected = (data | (data << 1)) & mask;
            (word & !affected) | (zero & affected)
        });
    }

    /// Makes the blocks of the range that are inherited [`BlockState::Zero`]: the data file has
    /// nothing of them.
    pub fn hide(&self, blocks: Range<u64>) {
        let zero = BlockState::Zero.repeated();
        self.change(blocks, |word, mask| {
            let inherited = !(word | (word >> 1)) & LOW;
            word | (zero & (inherited | (inherited << 1)) & mask)
        });
    }

    /// Turns [`BlockState::ZeroHeld`] of the range into [`BlockState::Zero`]: its space is free.
    pub fn set_released(&self, blocks: Range<u64>) {
        self.change(blocks, |word, mask| {
            let held = word & (word >> 1) & LOW & mask;
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
            debug_assert!(self.is_loaded(at / BLOCKS_PER_SECTOR), "not loaded");
            let word = &self.words.states()[(at / PER_WORD) as usize];
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
    fn load_sector(&self, sector: u64, states: &[u8; STATES_LEN]) {
        for (bytes, word) in states.chunks_exact(8).zip(self.sector_words(sector)) {
            let mut value = [0; 8];
            value.copy_from_slice(bytes);
            word.store(u64::from_le_bytes(value), Ordering::Release);
        }
    }

    fn sector_words(&self, sector: u64) -> &[AtomicU64] {
        let start = (sector * WORDS_PER_SECTOR) as usize;
        &self.words.states()[start..start + WORDS_PER_SECTOR as usize]
    }

    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }
}

impl Content {
    fn of(state: BlockState) -> Self {
        match state {
            BlockState::Inherit => Self::Inherited,
            BlockState::Data => Self::Data,
            BlockState::Zero | BlockState::ZeroHeld => Self::Zeros,
        }
    }

    /// The low bit of each place of a word whose block has another content.
    fn others_in(self, word: u64) -> u64 {
        match self {
            Self::Inherited => (word | (word >> 1)) & LOW,
            Self::Data => !data_in(word) & LOW,
            Self::Zeros => !(word >> 1) & LOW,
        }
    }
}

/// The low bit of each place of a word whose block has data: state 01.
fn data_in(word: u64) -> u64 {
    word & !(word >> 1) & LOW
}

fn no_memory(source: std::io::Error) -> VolumeError {
    VolumeError::Io {
        what: "make room in memory for the block map (runtime directory)",
        source,
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

    /// The states of a map file that is never written to.
    pub(super) struct Empty;

    impl ReadAt for Empty {
        fn size(&self) -> std::io::Result<u64> {
            Ok(u64::MAX)
        }

        fn read_exact_at(&self, buffer: &mut [u8], _: u64) -> std::io::Result<()> {
            buffer.fill(0);
            Ok(())
        }
    }

    fn map(blocks: u64) -> BlockMap {
        let map = BlockMap::private(Arc::new(Empty), blocks).unwrap();
        map.load_all().unwrap();
        map
    }

    #[derive(Debug, Clone)]
    enum Change {
        Data(Range<u64>),
        Zero(Range<u64>, bool),
        Hide(Range<u64>),
        Released(Range<u64>),
    }

    fn range() -> impl Strategy<Value = Range<u64>> {
        (0u64..5000, 0u64..300).prop_map(|(start, len)| start..(start + len).min(5000))
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            range().prop_map(Change::Data),
            (range(), any::<bool>()).prop_map(|(r, held)| Change::Zero(r, held)),
            range().prop_map(Change::Hide),
            range().prop_map(Change::Released),
        ]
    }

    type To = Box<dyn Fn(BlockState) -> BlockState>;

    fn apply(map: &BlockMap, change: Change) -> (Range<u64>, To) {
        match change {
            Change::Data(range) => {
                map.set_data(range.clone());
                (range, Box::new(|_| BlockState::Data))
            }
            Change::Zero(range, held) => {
                let to = match held {
                    true => BlockState::ZeroHeld,
                    false => BlockState::Zero,
                };
                map.set_zero(range.clone(), to);
                let new = move |old| if old == BlockState::Data { to } else { old };
                (range, Box::new(new))
            }
            Change::Hide(range) => {
                map.hide(range.clone());
                let new = |old| match old {
                    BlockState::Inherit => BlockState::Zero,
                    old => old,
                };
                (range, Box::new(new))
            }
            Change::Released(range) => {
                map.set_released(range.clone());
                let new = |old| match old {
                    BlockState::ZeroHeld => BlockState::Zero,
                    old => old,
                };
                (range, Box::new(new))
            }
        }
    }

    #[test]
    fn only_chunks_that_were_asked_for_are_loaded() {
        let map = BlockMap::private(Arc::new(Empty), 3 * BLOCKS_PER_CHUNK).unwrap();
        let second = BLOCKS_PER_CHUNK + 5;
        let run = map
            .run_in_chunk(second, u64::MAX - second)
            .unwrap()
            .unwrap();
        let blocks = BLOCKS_PER_CHUNK - 5;
        let what = Content::Inherited;
        assert_eq!(run, Run { what, blocks });
        let loaded = |chunk| map.is_loaded(chunk * SECTORS_PER_CHUNK);
        assert_eq!([loaded(0), loaded(1), loaded(2)], [false, true, false]);
        assert!(map.ensure(BLOCKS_PER_CHUNK - 1..BLOCKS_PER_CHUNK).unwrap());
        map.set_data(2..3);
        assert_eq!(map.data_blocks(), 1);
        map.words.flags()[2].store(LOADING, Ordering::Release);
        assert!(!map.ensure(0..3 * BLOCKS_PER_CHUNK).unwrap());
        map.forget_loaders();
        assert!(map.ensure(0..3 * BLOCKS_PER_CHUNK).unwrap());
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_array(changes in prop::collection::vec(change(), 1..40), probe in 0u64..5000) {
            let map = map(5000);
            let mut model = vec![BlockState::Inherit; 5000];
            let mut dirty = std::collections::BTreeSet::new();
            for change in changes {
                let (range, to) = apply(&map, change);
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
            let what = Content::of(model[probe as usize]);
            let same = |b: &&BlockState| Content::of(**b) == what;
            let blocks = model[probe as usize..].iter().take_while(same).count() as u64;
            prop_assert_eq!(map.run(probe, 5000), Run { what, blocks });
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
