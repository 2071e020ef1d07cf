//! Loading the map: chunk by chunk, when it is asked for, and over the holes of its file.

use std::ops::Range;

use crate::VolumeError;
use crate::format::{
    self, BLOCKS_PER_CHUNK, BLOCKS_PER_SECTOR, SECTOR_LEN, SECTORS_PER_CHUNK, STATES_LEN,
};
use crate::frozen::FrozenMap;
use crate::mapped::MapWords;
use crate::sync::{AtomicU64, Ordering};

use super::block_map::{BlockMap, Content, LOW, Run, WORDS_PER_SECTOR, no_memory};

/// How often a chunk is read that seems damaged: another process may be writing a sector of it, as a
/// merge does with a frozen layer's map, and a reader can meet it half written.
const TRIES: u32 = 3;

/// How far a chunk is loaded.
const UNLOADED: u64 = 0;
pub(super) const LOADING: u64 = 1;
pub(super) const LOADED: u64 = 2;
/// Its words are those of the map file. Of a frozen layer only, so never in a runtime map.
const SHARED: u64 = 3;

/// Whether it is known of each chunk how far it is loaded. A word with any other value says neither that what
/// was completed is here nor that it is not.
pub(crate) fn is_sound(words: &MapWords) -> bool {
    let known = |flag: &AtomicU64| flag.load(Ordering::Acquire) <= LOADED;
    words.flags().iter().all(known)
}

impl BlockMap {
    /// Loads the map of `blocks`, and says whether it is in memory. When it is not, another thread is loading
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
            if is_there(flag) {
                continue;
            }
            if !self.load_chunk(chunk, flag)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// As [`BlockMap::ensure`], and waits for other threads that load them.
    ///
    /// # Errors
    /// As [`BlockMap::ensure`].
    pub fn load(&self, blocks: Range<u64>) -> Result<(), VolumeError> {
        while !self.ensure(blocks.clone())? {
            std::thread::yield_now();
        }
        Ok(())
    }

    #[cold]
    fn load_chunk(&self, chunk: u64, flag: &AtomicU64) -> Result<bool, VolumeError> {
        let mine = flag.compare_exchange(UNLOADED, LOADING, Ordering::AcqRel, Ordering::Acquire);
        if let Err(found) = mine {
            return Ok(found == LOADED || found == SHARED);
        }
        let loaded = self.read_chunk(chunk);
        let now = *loaded.as_ref().unwrap_or(&UNLOADED);
        flag.store(now, Ordering::Release);
        loaded.map(|_| true)
    }

    /// Returns how its chunk is loaded then.
    fn read_chunk(&self, chunk: u64) -> Result<u64, VolumeError> {
        let sectors = format::sectors_of_chunk(chunk, self.blocks);
        // All of the chunk, also what the disk has not of it yet: it may grow.
        let words = SECTORS_PER_CHUNK * WORDS_PER_SECTOR;
        self.words
            .allocate(chunk as usize, words as usize)
            .map_err(no_memory)?;
        // To read a hole would fill the page cache with zeros.
        if self.next_data(chunk)? > chunk {
            return Ok(LOADED);
        }
        let mut tries = TRIES;
        loop {
            match self.read_sectors(sectors.clone()) {
                Err(VolumeError::MapDamaged { .. }) if tries > 1 => tries -= 1,
                read => return read,
            }
        }
    }

    fn read_sectors(&self, sectors: Range<u64>) -> Result<u64, VolumeError> {
        let bytes = self.read_durable(sectors.clone())?;
        if let Some(frozen) = &self.frozen {
            let mut says_nothing = true;
            each_in(sectors.start, &bytes, |_, _| says_nothing = false)?;
            if says_nothing {
                return Ok(LOADED);
            }
            if frozen.hold(format::sector_offset(sectors.start), &bytes) {
                return Ok(SHARED);
            }
        }
        each_in(sectors.start, &bytes, |sector, states| {
            self.load_sector(sector, states);
            if has_held(states) {
                self.notes.held().insert(sector);
            }
        })?;
        Ok(LOADED)
    }

    /// Gives the states of the sectors that the map file has to `each`.
    pub(super) fn each_durable(
        &self,
        sectors: Range<u64>,
        each: impl FnMut(u64, &[u8; STATES_LEN]),
    ) -> Result<(), VolumeError> {
        let bytes = self.read_durable(sectors.clone())?;
        each_in(sectors.start, &bytes, each)
    }

    /// The sectors as the map file has them.
    fn read_durable(&self, sectors: Range<u64>) -> Result<Vec<u8>, VolumeError> {
        let mut bytes = vec![0; (sectors.end - sectors.start) as usize * SECTOR_LEN];
        self.durable
            .read_exact_at(&mut bytes, format::sector_offset(sectors.start))
            .map_err(unreadable)?;
        Ok(bytes)
    }

    /// Forgets who was loading when a process died that had the same words.
    pub(crate) fn forget_loaders(&self) {
        for flag in self.words.flags() {
            let _ = flag.compare_exchange(LOADING, UNLOADED, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Whether the chunk of a map sector is loaded already.
    pub(super) fn is_loaded(&self, sector: u64) -> bool {
        is_there(&self.words.flags()[(sector / SECTORS_PER_CHUNK) as usize])
    }

    /// What has the words of a sector that are shared.
    pub(super) fn shared(&self, sector: u64) -> Option<&FrozenMap> {
        let frozen = self.frozen.as_ref()?;
        let flag = &self.words.flags()[(sector / SECTORS_PER_CHUNK) as usize];
        (flag.load(Ordering::Acquire) == SHARED).then_some(frozen)
    }

    /// Takes over the states of a map sector from the durable map.
    fn load_sector(&self, sector: u64, states: &[u8; STATES_LEN]) {
        for (bytes, word) in states.chunks_exact(8).zip(self.sector_words(sector)) {
            let mut value = [0; 8];
            value.copy_from_slice(bytes);
            word.store(u64::from_le_bytes(value), Ordering::Release);
        }
    }

    /// As [`BlockMap::run_in_chunk`], but what is not loaded and a hole of the map file is passed over as a
    /// whole, and not loaded: for going through all of a map.
    ///
    /// # Errors
    /// As [`BlockMap::ensure`].
    pub fn run_or_hole(&self, first: u64, most: u64) -> Result<Option<Run<Content>>, VolumeError> {
        let chunk = first / BLOCKS_PER_CHUNK;
        let flag = &self.words.flags()[chunk as usize];
        if flag.load(Ordering::Acquire) == UNLOADED {
            let next = self
                .next_chunk(chunk)?
                .unwrap_or(format::chunks(self.blocks));
            if next > chunk {
                let end = (next * BLOCKS_PER_CHUNK).min(self.blocks);
                let (what, blocks) = (Content::Inherited, most.min(end - first));
                return Ok(Some(Run { what, blocks }));
            }
        }
        self.run_in_chunk(first, most)
    }

    /// As [`BlockMap::run_or_hole`], and waits for another thread that loads them.
    ///
    /// # Errors
    /// As [`BlockMap::ensure`].
    pub fn run_anywhere(&self, first: u64, most: u64) -> Result<Run<Content>, VolumeError> {
        loop {
            match self.run_or_hole(first, most)? {
                Some(run) => return Ok(run),
                None => std::thread::yield_now(),
            }
        }
    }

    /// The blocks of the first chunk that is loaded, of those that begin at `from` or later. Only there can
    /// the map differ from its file.
    pub fn next_loaded(&self, from: u64) -> Option<Range<u64>> {
        let first = from.div_ceil(BLOCKS_PER_CHUNK) as usize;
        let rest = self.words.flags().get(first..)?;
        let chunk = first + rest.iter().position(is_there)?;
        let start = chunk as u64 * BLOCKS_PER_CHUNK;
        Some(start..(start + BLOCKS_PER_CHUNK).min(self.blocks))
    }

    /// The first chunk from `chunk` on that is loaded, or that the map file may have something of.
    ///
    /// # Errors
    /// [`VolumeError::Io`].
    pub fn next_chunk(&self, chunk: u64) -> Result<Option<u64>, VolumeError> {
        let chunks = format::chunks(self.blocks);
        if chunk >= chunks {
            return Ok(None);
        }
        let flags = self.words.flags();
        let mut rest = chunk as usize..flags.len();
        let loaded = rest.find(|chunk| flags[*chunk].load(Ordering::Acquire) != UNLOADED);
        let data = self.next_data(chunk)?;
        let next = loaded.map_or(data, |loaded| data.min(loaded as u64));
        Ok((next < chunks).then_some(next))
    }

    /// The first chunk from `chunk` on that the map file may have something of, or one behind the last.
    fn next_data(&self, chunk: u64) -> Result<u64, VolumeError> {
        let from = format::sector_offset(chunk * SECTORS_PER_CHUNK);
        let data = self.durable.next_data(from).map_err(unreadable)?;
        Ok(data.map_or(format::chunks(self.blocks), |at| {
            chunk + (at.max(from) - from) / (SECTORS_PER_CHUNK * SECTOR_LEN as u64)
        }))
    }

    /// Looks in one chunk for space to be given back that a former process left, and notes it.
    ///
    /// # Errors
    /// As [`BlockMap::ensure`]; the map file may be damaged there.
    pub fn find_held(&self, chunk: u64) -> Result<(), VolumeError> {
        let sectors = format::sectors_of_chunk(chunk, self.blocks);
        if self.is_loaded(sectors.start) {
            for sector in sectors {
                if has_held(&self.sector_states(sector)) {
                    self.notes.held().insert(sector);
                }
            }
        } else if self.durable_has_held(sectors.clone())? {
            // Whichever thread loads it notes what it finds.
            self.ensure(sectors.start * BLOCKS_PER_SECTOR..sectors.start * BLOCKS_PER_SECTOR + 1)?;
        }
        Ok(())
    }

    fn durable_has_held(&self, sectors: Range<u64>) -> Result<bool, VolumeError> {
        let mut held = false;
        self.each_durable(sectors, |_, states| held |= has_held(states))?;
        Ok(held)
    }
}

/// Whether a chunk is in memory.
fn is_there(flag: &AtomicU64) -> bool {
    matches!(flag.load(Ordering::Acquire), LOADED | SHARED)
}

/// Gives the states of those of some sectors that say anything to `each`. The first has the number `first`.
fn each_in(
    first: u64,
    bytes: &[u8],
    mut each: impl FnMut(u64, &[u8; STATES_LEN]),
) -> Result<(), VolumeError> {
    for (sector, raw) in (first..).zip(bytes.as_chunks::<SECTOR_LEN>().0) {
        if let Some(states) = format::decode_sector(sector, raw)? {
            each(sector, states);
        }
    }
    Ok(())
}

/// Whether the states of a sector have [`BlockState::ZeroHeld`].
fn has_held(states: &[u8; STATES_LEN]) -> bool {
    let words = states.as_chunks::<8>().0.iter();
    words
        .map(|bytes| u64::from_le_bytes(*bytes))
        .any(|word| word & (word >> 1) & LOW != 0)
}

fn unreadable(source: std::io::Error) -> VolumeError {
    VolumeError::Io {
        what: "read the map file",
        source,
    }
}
