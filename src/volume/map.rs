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
use super::flushes::Flushes;
use super::format::{
    self, BLOCKS_PER_CHUNK, BLOCKS_PER_SECTOR, SECTOR_LEN, SECTORS_PER_CHUNK, STATES_LEN,
};
use super::mapped::MapWords;
use super::notes::SectorNotes;
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
    notes: SectorNotes,
    flushes: Arc<Flushes>,
    blocks: u64,
}

/// What blocks become, for whoever makes it durable.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Becomes {
    Data,
    Zeros,
    /// Zeros with space to be given back.
    Held,
    /// Zeros whose space was given back: the durable map is true without it.
    Released,
}

impl BlockMap {
    /// A map over `words`, which must have [`BlockMap::words_for`] of them, and a flag for each of
    /// the chunks of `blocks`.
    ///
    /// # Errors
    /// [`VolumeError::Io`] when there is no memory for what is noted of it.
    pub(super) fn new(
        words: MapWords,
        durable: MapFile,
        blocks: u64,
        flushes: Arc<Flushes>,
    ) -> Result<Self, VolumeError> {
        Ok(Self {
            words,
            durable,
            notes: SectorNotes::new(format::sectors(blocks)).map_err(no_memory)?,
            flushes,
            blocks,
        })
    }

    /// A map in this process alone, of which nothing is loaded.
    pub(super) fn private(durable: MapFile, blocks: u64) -> Result<Self, VolumeError> {
        let chunks = format::chunks(blocks) as usize;
        let words = MapWords::private(chunks, Self::words_for(blocks)).map_err(no_memory)?;
        Self::new(words, durable, blocks, Arc::default())
    }

    /// The flushes that make it durable.
    pub fn flushes(&self) -> &Arc<Flushes> {
        &self.flushes
    }

    /// Notes what `other`, a map of the same words and of no more blocks, has changed.
    pub(super) fn take_over_notes(&self, other: &Self) {
        self.notes.take_over(&other.notes);
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
        let becomes = Becomes::Data;
        self.change(blocks, becomes, |word, mask| (word & !mask) | (data & mask));
    }

    /// Makes the blocks of the range that have data read as zeros, as `to` says.
    pub fn set_zero(&self, blocks: Range<u64>, to: BlockState) {
        debug_assert!(matches!(to, BlockState::Zero | BlockState::ZeroHeld));
        let zero = to.repeated();
        let becomes = match to {
            BlockState::ZeroHeld => Becomes::Held,
            _ => Becomes::Zeros,
        };
        self.change(blocks, becomes, |word, mask| {
            let data = data_in(word);
            let affected = (data | (data << 1)) & mask;
            (word & !affected) | (zero & affected)
        });
    }

    /// Makes the blocks of the range that are inherited [`BlockState::Zero`]: the data file has
    /// nothing of them.
    pub fn hide(&self, blocks: Range<u64>) {
        let zero = BlockState::Zero.repeated();
        self.change(blocks, Becomes::Zeros, |word, mask| {
            let inherited = !(word | (word >> 1)) & LOW;
            word | (zero & (inherited | (inherited << 1)) & mask)
        });
    }

    /// Turns [`BlockState::ZeroHeld`] of the range into [`BlockState::Zero`]: its space is free.
    pub fn set_released(&self, blocks: Range<u64>) {
        self.change(blocks, Becomes::Released, |word, mask| {
            let held = word & (word >> 1) & LOW & mask;
            word & !held
        });
    }

    /// Applies `to` to every word of the range; its mask has both bits of each block meant.
    fn change(&self, blocks: Range<u64>, becomes: Becomes, to: impl Fn(u64, u64) -> u64) {
        let mut at = blocks.start;
        while at < blocks.end {
            let sector = at / BLOCKS_PER_SECTOR;
            let end = blocks.end.min((sector + 1) * BLOCKS_PER_SECTOR);
            if self.change_in_sector(at..end, &to) {
                self.note(sector, becomes);
            }
            at = end;
        }
    }

    /// Notes that blocks of a sector have changed. After their states: a flush that takes this note then
    /// sees them, one that took an earlier one finds it there again, and one that comes before it is not
    /// the one that covers them.
    fn note(&self, sector: u64, becomes: Becomes) {
        match becomes {
            Becomes::Released => return self.notes.released().insert(sector),
            Becomes::Data | Becomes::Zeros | Becomes::Held => self.notes.dirty().insert(sector),
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

    /// As [`BlockMap::change`] in one sector; whether anything is another now.
    fn change_in_sector(&self, blocks: Range<u64>, to: impl Fn(u64, u64) -> u64) -> bool {
        let (mut at, mut changed) = (blocks.start, false);
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
            changed |= word
                .try_update(Ordering::AcqRel, Ordering::Acquire, update)
                .is_ok();
            at += count;
        }
        changed
    }

    /// Has the next flush write this map sector.
    pub fn mark_dirty(&self, sector: u64) {
        self.notes.dirty().insert(sector);
    }

    /// Takes the set of sectors that a flush has to write into `sectors`, which is empty, in rising order;
    /// if there are any, with at most `more` of those that it may write as well.
    pub fn take_dirty(&self, sectors: &mut Vec<u64>, more: usize) {
        self.notes.dirty().take(sectors);
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

    /// Has the next flush write every sector of which the durable map names space that was given back.
    /// Whether there are any.
    pub fn mark_released_dirty(&self) -> bool {
        let mut sectors = Vec::new();
        self.notes.released().take(&mut sectors);
        sectors.iter().for_each(|sector| self.mark_dirty(*sector));
        !sectors.is_empty()
    }

    /// Notes that the sector, of the map of a former process, has space to be given back once the first
    /// flush is done.
    pub(super) fn note_held(&self, sector: u64) {
        self.notes.held().insert(sector);
    }

    /// Whether the durable map says of all `blocks`, which are marked so that none can become anything
    /// else, that they are data.
    pub fn has_durable_data(&self, blocks: Range<u64>) -> bool {
        if blocks.is_empty() {
            return true;
        }
        let count = blocks.end - blocks.start;
        let what = Content::Data;
        let sectors = blocks.start / BLOCKS_PER_SECTOR..=(blocks.end - 1) / BLOCKS_PER_SECTOR;
        self.run(blocks.start, count)
            == Run {
                what,
                blocks: count,
            }
            && sectors
                .into_iter()
                .all(|sector| self.flushes.is_done(self.notes.fill(sector)))
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
            let mut released = std::collections::BTreeSet::new();
            for change in changes {
                let releases = matches!(change, Change::Released(_));
                let (range, to) = apply(&map, change);
                for block in range {
                    let new = to(model[block as usize]);
                    if model[block as usize] != new {
                        let sectors = if releases { &mut released } else { &mut dirty };
                        sectors.insert(block / BLOCKS_PER_SECTOR);
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
            let (mut taken, mut expected) = (Vec::new(), dirty);
            map.take_dirty(&mut taken, 0);
            prop_assert_eq!(&taken, &expected.iter().copied().collect::<Vec<_>>());
            // What was only given back is written when there is an occasion.
            expected.extend(&released);
            map.take_dirty(&mut taken, 1000);
            taken.sort_unstable();
            taken.dedup();
            prop_assert_eq!(&taken, &expected.into_iter().collect::<Vec<_>>());

            let mut held = vec![];
            for sector in 0..format::sectors(5000) {
                held_runs(sector, &map.sector_states(sector), |run| held.extend(run));
            }
            let expected = (0..5000).filter(|b| model[*b as usize] == BlockState::ZeroHeld);
            prop_assert_eq!(held, expected.collect::<Vec<_>>());
        }
    }
}
