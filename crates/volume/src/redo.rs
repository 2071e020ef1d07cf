//! Writes into a data file that is memory, so that a process that dies leaves each block of one old or new.
//!
//! The cipher stores a few bytes at a time, and a kill comes between any two instructions. Where the kernel writes,
//! it finishes a page before it looks for a kill; a store into a mapping has nobody who finishes it. So a pipeline
//! that writes into one has a slot in the runtime map's file, which outlives the process as the data file does, and
//! writes a block, or the part of a block that a request has of it, in four steps:
//!
//! 1. its ciphertext goes into the slot;
//! 2. the slot's word says where that belongs;
//! 3. it is copied into the data file;
//! 4. the word says nothing any more.
//!
//! A death before 2 leaves what was there before; nothing has touched it. After a death from 2 on, whoever opens the
//! runtime map next copies all of it again, before anything of the disk is read or written
//! ([`RuntimeMap::finish_writes`](super::RuntimeMap::finish_writes)), and only then clears the word. That does no
//! harm after 3 either: the request has not completed until 4, so no later write depends on it, and its blocks are
//! marked, so that they have data. What another queue wrote to the same sectors meanwhile was in flight at the same
//! time, and either may be the last.
//!
//! A process that looks after the death sees the stores that came before it, and none that come after: a kill
//! is taken between two instructions, and the processor has finished all stores of the first when the kernel has
//! ended the process. What is left to do is to keep the compiler from another order: `say` has a fence on both sides of
//! each store to the word. The slot is memory, as the file is: a loss of power takes both.
//!
//! Into a file that is too large for the caches of the processor it is copied past them. Threads see that late, so that
//! a request ends with [`RedoSlot::publish`].

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use keys::units::{BLOCK_SIZE, ByteOffset, SECTOR_SIZE};

use super::map::BlockMap;
use super::mapped::{LINE, Mapped};
use super::past_caches;

/// Slots of a disk. A pipeline that gets none writes by system calls.
pub(super) const SLOTS: usize = 512;
/// Bytes of all words.
pub(super) const WORDS_LEN: usize = SLOTS * LINE;
/// Bytes of the words and of the blocks behind them.
pub(super) const LEN: usize = WORDS_LEN + SLOTS * BLOCK_SIZE as usize;

/// Bytes of a disk of which all may be in the caches of the processor. In larger ones a store past the caches is
/// faster: it does not fetch what it overwrites (docs/performance.md has the figures).
const CACHED: u64 = 64 << 20;

/// The word of a slot whose content belongs nowhere.
const NOTHING: u64 = 0;
const SECTORS_PER_BLOCK: u64 = BLOCK_SIZE / SECTOR_SIZE;

/// Where the block of a slot starts, counted from the first word.
pub(super) fn block_at(slot: usize) -> usize {
    WORDS_LEN + slot * BLOCK_SIZE as usize
}

/// A write into the data file that its process may not have finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unfinished {
    pub(super) slot: usize,
    /// Where in the data file the slot's content belongs.
    pub(super) at: ByteOffset,
    /// Its bytes.
    pub(super) len: usize,
}

impl Unfinished {
    /// What the words of all slots say, of a disk of `size` bytes.
    ///
    /// # Errors
    /// `InvalidData` when a word says what no process of ours has said.
    pub(super) fn all(words: &[u8], size: u64) -> io::Result<Vec<Self>> {
        let words = words.chunks_exact(LINE).enumerate();
        let mut all = Vec::new();
        for (slot, line) in words {
            let mut word = [0; 8];
            word.copy_from_slice(&line[..8]);
            let word = u64::from_ne_bytes(word);
            if word == NOTHING {
                continue;
            }
            let (first, sectors) = (word >> 8, word & 0xff);
            let is_in_block =
                sectors > 0 && first % SECTORS_PER_BLOCK + sectors <= SECTORS_PER_BLOCK;
            if !is_in_block || first + sectors > size / SECTOR_SIZE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            all.push(Self {
                slot,
                at: ByteOffset(first * SECTOR_SIZE),
                len: (sectors * SECTOR_SIZE) as usize,
            });
        }
        Ok(all)
    }
}

/// The word of a slot whose content, whole sectors of one block, belongs to a place of the data file.
fn belonging_to(at: ByteOffset, len: usize) -> u64 {
    debug_assert!(len > 0 && at.in_block() + len as u64 <= BLOCK_SIZE);
    (at.sector().0 << 8) | (len as u64 / SECTOR_SIZE)
}

/// Which slots of a disk are taken.
#[derive(Default)]
pub(super) struct TakenSlots([AtomicU64; SLOTS / 64]);

impl TakenSlots {
    fn take(&self) -> Option<usize> {
        self.0.iter().enumerate().find_map(|(index, word)| {
            let lowest = |taken: u64| (taken != u64::MAX).then(|| taken | (taken + 1));
            let before = word.try_update(Ordering::Relaxed, Ordering::Relaxed, lowest);
            Some(index * 64 + before.ok()?.trailing_ones() as usize)
        })
    }

    fn give_back(&self, slot: usize) {
        self.0[slot / 64].fetch_and(!(1 << (slot % 64)), Ordering::Relaxed);
    }
}

/// The slot of a pipeline.
pub(super) struct RedoSlot {
    map: Arc<BlockMap>,
    taken: Arc<TakenSlots>,
    slot: usize,
    /// Where its word is in the memory of the map.
    word: usize,
    /// Where its block is.
    block: usize,
    /// Whether the disk is too large for the caches of the processor.
    past_caches: bool,
}

impl RedoSlot {
    /// A free slot in the memory of `map`, for a disk of so many bytes. None where that ends with the process, where all are taken, and
    /// where there is no memory for it.
    pub(super) fn take(
        map: &Arc<BlockMap>,
        taken: &Arc<TakenSlots>,
        disk_size: u64,
    ) -> Option<Self> {
        let start = map.words().redo()?;
        let slot = taken.take()?;
        let slot = Self {
            map: map.clone(),
            taken: taken.clone(),
            slot,
            word: start + slot * LINE,
            block: start + block_at(slot),
            past_caches: disk_size > CACHED,
        };
        let memory = slot.memory();
        let has_memory = memory
            .allocate(slot.word, LINE)
            .and_then(|()| memory.allocate(slot.block, BLOCK_SIZE as usize));
        has_memory.ok().map(|()| slot)
    }

    /// The address of its content, of a block's length.
    pub(super) fn block(&self) -> NonNull<u8> {
        self.memory().bytes(self.block, BLOCK_SIZE as usize)
    }

    /// Copies the first `len` bytes of its content, whole sectors of one block, into the data file at `into`: disk
    /// offset `at`.
    ///
    /// # Safety
    /// `into` must be writable for `len` bytes. [`RedoSlot::publish`] must follow before anybody else uses them.
    pub(super) unsafe fn copy(&self, at: ByteOffset, len: usize, into: NonNull<u8>) {
        let word = &self.memory().words(self.word, 1)[0];
        let block = self.memory().bytes(self.block, len);
        say(word, belonging_to(at, len));
        // SAFETY: `block` has `len` bytes (asked for just now), `into` too (the caller's promise), and the
        // runtime map is mapped elsewhere than the data file. Slots, sectors and pages begin at multiples of 16; the
        // caller publishes.
        unsafe {
            match self.past_caches {
                true => past_caches::copy(block, into, len),
                false => std::ptr::copy_nonoverlapping(block.as_ptr(), into.as_ptr(), len),
            }
        }
        say(word, NOTHING);
    }

    /// Whether a copy waits for the lines of the data file, so that it is of use to have them fetched before.
    pub(super) fn waits_for_lines(&self) -> bool {
        !self.past_caches
    }

    /// Has all threads see what was copied, before anything that this one stores after.
    pub(super) fn publish(&self) {
        if self.past_caches {
            past_caches::publish();
        }
    }

    fn memory(&self) -> &Mapped {
        self.map.words().memory()
    }
}

/// Stores a slot's word after all that comes before, and before all that comes after.
fn say(word: &AtomicU64, what: u64) {
    fence(Ordering::Release);
    word.store(what, Ordering::Relaxed);
    fence(Ordering::Release);
}

impl Drop for RedoSlot {
    fn drop(&mut self) {
        self.taken.give_back(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_is_taken_once() {
        let taken = TakenSlots::default();
        assert!((0..SLOTS).all(|slot| taken.take() == Some(slot)));
        assert_eq!(taken.take(), None);
        for slot in [0, 64, 511] {
            taken.give_back(slot);
            assert_eq!(taken.take(), Some(slot));
        }
    }

    #[test]
    fn a_word_names_sectors_of_one_block_of_the_disk() {
        const SIZE: u64 = 10 * BLOCK_SIZE + 1024;
        let all = |word: u64| {
            let mut words = vec![0; WORDS_LEN];
            words[3 * LINE..][..8].copy_from_slice(&word.to_ne_bytes());
            Unfinished::all(&words, SIZE)
        };
        assert_eq!(all(NOTHING).unwrap(), []);
        for (at, len) in [
            (0, 4096),
            (4096 + 512, 3584),
            (9 * 4096 + 512, 512),
            (40960, 1024),
        ] {
            let at = ByteOffset(at);
            let slot = 3;
            let found = all(belonging_to(at, len)).unwrap();
            assert_eq!(found, [Unfinished { slot, at, len }]);
        }
        // No sectors, more than a block has, into the next block, behind the end.
        for word in [
            1 << 8,
            9,
            (7 << 8) | 2,
            (82 << 8) | 1,
            (80 << 8) | 3,
            u64::MAX,
        ] {
            let error = all(word).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{word:#x}");
        }
    }
}
