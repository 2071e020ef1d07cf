//! The current map: two bits a block, read and changed by all queue threads without a lock.
//!
//! It is loaded from the map file in chunks, each when it is first asked for, so that a large disk
//! takes memory only for the parts of it that are used. The first thread that needs a chunk loads it;
//! others try again. The map of a frozen layer is read where its file lies in memory, where that can be.

use std::ops::Range;
use std::sync::Arc;

use crate::store::ReadAt;

use crate::flushes::Flushes;
use crate::format::{self, BLOCKS_PER_CHUNK, BLOCKS_PER_SECTOR, STATES_LEN};
use crate::frozen::FrozenMap;
use crate::mapped::MapWords;
use crate::notes::SectorNotes;
use crate::sync::{AtomicU64, Ordering};
use crate::{BlockState, VolumeError};

/// Blocks in a word.
const PER_WORD: u64 = 32;
/// Words in a map sector.
pub(super) const WORDS_PER_SECTOR: u64 = STATES_LEN as u64 / 8;
/// The lower bit of each of the 32 places of a word.
pub(super) const LOW: u64 = 0x5555_5555_5555_5555;

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
    pub(super) words: MapWords,
    /// Has the words of chunks that are shared.
    pub(super) frozen: Option<FrozenMap>,
    pub(super) durable: MapFile,
    pub(super) notes: SectorNotes,
    pub(super) flushes: Arc<Flushes>,
    pub(super) blocks: u64,
}

/// What blocks become, for the flush that makes it durable.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Becomes {
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
    pub(crate) fn new(
        words: MapWords,
        durable: MapFile,
        blocks: u64,
        flushes: Arc<Flushes>,
    ) -> Result<Self, VolumeError> {
        Ok(Self {
            words,
            frozen: None,
            durable,
            notes: SectorNotes::new(format::sectors(blocks)).map_err(no_memory)?,
            flushes,
            blocks,
        })
    }

    /// A map in this process alone, of which nothing is loaded.
    pub(crate) fn private(durable: MapFile, blocks: u64) -> Result<Self, VolumeError> {
        let chunks = format::chunks(blocks) as usize;
        let words = MapWords::private(chunks, Self::words_for(blocks)).map_err(no_memory)?;
        Self::new(words, durable, blocks, Arc::default())
    }

    /// As [`BlockMap::private`], of a layer that nobody writes to here: what can be is shared with others.
    pub(crate) fn frozen(
        durable: MapFile,
        blocks: u64,
        frozen: Option<FrozenMap>,
    ) -> Result<Self, VolumeError> {
        Ok(Self {
            frozen,
            ..Self::private(durable, blocks)?
        })
    }

    /// Its memory.
    pub(crate) fn words(&self) -> &MapWords {
        &self.words
    }

    /// The flushes that make it durable.
    pub fn flushes(&self) -> &Arc<Flushes> {
        &self.flushes
    }

    /// Notes what `other`, a map of the same words and of no more blocks, has changed.
    pub(crate) fn take_over_notes(&self, other: &Self) {
        self.notes.take_over(&other.notes);
    }

    /// Words that the map of `blocks` blocks takes.
    pub(crate) fn words_for(blocks: u64) -> usize {
        (format::sectors(blocks) * WORDS_PER_SECTOR) as usize
    }

    /// The file that the map is loaded from.
    pub(crate) fn durable(&self) -> &MapFile {
        &self.durable
    }

    /// Whether a sync of the layer has failed, as [`FailedSync`](crate::FailedSync) has it.
    pub(crate) fn failed_sync(&self) -> &AtomicU64 {
        self.words.failed_sync()
    }

    /// The state of one block.
    pub fn get(&self, block: u64) -> BlockState {
        BlockState::from_bits(self.word(block) >> (2 * (block % PER_WORD)))
    }

    fn word(&self, block: u64) -> u64 {
        let sector = block / BLOCKS_PER_SECTOR;
        debug_assert!(self.is_loaded(sector), "not loaded");
        match self.shared(sector) {
            Some(frozen) => frozen.word(sector, block % BLOCKS_PER_SECTOR / PER_WORD),
            None => self.words.states()[(block / PER_WORD) as usize].load(Ordering::Acquire),
        }
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
    /// `None` while another thread loads them.
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
            .flat_map(|sector| self.words_in(sector))
            .map(|word| u64::from(data_in(word).count_ones()))
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

    /// Makes blocks, which are loaded, what `durable` says of them, a map of the same layer to which they are
    /// no data: what was written to them is lost.
    ///
    /// # Errors
    /// As [`BlockMap::ensure`] of `durable`, before anything is changed.
    pub fn give_up(&self, blocks: Range<u64>, durable: &Self) -> Result<(), VolumeError> {
        durable.load(blocks.clone())?;
        for block in blocks {
            let state = durable.get(block);
            let becomes = match state {
                BlockState::ZeroHeld => Becomes::Held,
                _ => Becomes::Zeros,
            };
            let bits = state.repeated();
            self.change(block..block + 1, becomes, |word, mask| {
                (word & !mask) | (bits & mask)
            });
        }
        Ok(())
    }

    /// Applies `to` to every word of the range; its mask has both bits of each block meant.
    pub(super) fn change(
        &self,
        blocks: Range<u64>,
        becomes: Becomes,
        to: impl Fn(u64, u64) -> u64,
    ) {
        let is_other = |(index, mask): (usize, u64)| {
            let word = self.words.states()[index].load(Ordering::Acquire);
            to(word, mask) != word
        };
        // Mostly nothing is another, and nothing is to be said.
        if !words_of(blocks.clone()).any(is_other) {
            return;
        }
        let sectors = blocks.start / BLOCKS_PER_SECTOR..blocks.end.div_ceil(BLOCKS_PER_SECTOR);
        let changing = self.begin_change(sectors);
        let mut at = blocks.start;
        while at < blocks.end {
            let sector = at / BLOCKS_PER_SECTOR;
            let end = blocks.end.min((sector + 1) * BLOCKS_PER_SECTOR);
            if self.change_in_sector(at..end, &to) {
                self.note(sector, becomes);
            }
            at = end;
        }
        drop(changing);
    }

    /// As [`BlockMap::change`] in one sector; whether anything is another now.
    fn change_in_sector(&self, blocks: Range<u64>, to: impl Fn(u64, u64) -> u64) -> bool {
        debug_assert!(
            self.is_loaded(blocks.start / BLOCKS_PER_SECTOR),
            "not loaded"
        );
        let mut changed = false;
        for (index, mask) in words_of(blocks) {
            let update = |old| {
                let new = to(old, mask);
                (new != old).then_some(new)
            };
            changed |= self.words.states()[index]
                .try_update(Ordering::AcqRel, Ordering::Acquire, update)
                .is_ok();
        }
        changed
    }

    /// The states of a map sector as the format has them.
    pub fn sector_states(&self, sector: u64) -> [u8; STATES_LEN] {
        let mut states = [0; STATES_LEN];
        for (bytes, word) in states.chunks_exact_mut(8).zip(self.words_in(sector)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        states
    }

    fn words_in(&self, sector: u64) -> impl Iterator<Item = u64> {
        let first = sector * BLOCKS_PER_SECTOR;
        (0..WORDS_PER_SECTOR).map(move |word| self.word(first + word * PER_WORD))
    }

    pub(super) fn sector_words(&self, sector: u64) -> &[AtomicU64] {
        let start = (sector * WORDS_PER_SECTOR) as usize;
        &self.words.states()[start..start + WORDS_PER_SECTOR as usize]
    }

    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }
}

impl Content {
    pub(super) fn of(state: BlockState) -> Self {
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

/// The words that have the states of some blocks, each with a mask of both bits of each of these.
fn words_of(blocks: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let mut at = blocks.start;
    std::iter::from_fn(move || {
        let in_word = at % PER_WORD;
        let count = (PER_WORD - in_word).min(blocks.end.saturating_sub(at));
        let index = (at / PER_WORD) as usize;
        at += count;
        (count > 0).then(|| (index, (u64::MAX >> (64 - 2 * count)) << (2 * in_word)))
    })
}

/// The low bit of each place of a word whose block has data: state 01.
fn data_in(word: u64) -> u64 {
    word & !(word >> 1) & LOW
}

pub(super) fn no_memory(source: std::io::Error) -> VolumeError {
    VolumeError::Io {
        what: "make room in memory for the block map (runtime directory)",
        source,
    }
}
