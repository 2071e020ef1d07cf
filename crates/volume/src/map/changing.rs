//! That states are being changed: a process that dies between a change and the note of it leaves the note here.
//!
//! Which sectors a flush has to write is noted after their states, or a flush that takes the note between the
//! two would write the old ones. A death between the two would leave states that the map file never gets, since a request
//! that is done again finds nothing to change. So a thread says first which sectors it changes, in a word of its own
//! that outlives the process as the states do, and takes that back after the note. Who opens the map next notes what
//! such a word names. For the same reason a thread that finds such a word takes no state of its sectors for durable.
//!
//! Another thread finds the states as they are to be before they are noted: it changes nothing, notes nothing, and tells its
//! guest that all is done. So a flush takes what such words name along with what was noted.

use std::ops::Range;
use std::sync::atomic::AtomicUsize;

use crate::format;
use crate::mapped::CHANGING;
use crate::sync::{AtomicU64, Ordering};

use super::block_map::BlockMap;

/// The word of a thread that changes nothing.
const NOTHING: u64 = 0;

/// States are being changed, and it is not noted yet, until this is dropped.
pub(super) struct Changing<'a>(&'a AtomicU64);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.store(NOTHING, Ordering::SeqCst);
    }
}

impl BlockMap {
    /// Says that states of these sectors are about to be changed.
    pub(super) fn begin_change(&self, sectors: Range<u64>) -> Changing<'_> {
        let naming = naming(&sectors);
        // Threads are fewer than words, mostly; where two share one, either takes the next.
        let mut place = own_place();
        loop {
            let word = self.words.changing(place);
            if word.load(Ordering::Relaxed) == NOTHING
                && let Ok(_) =
                    word.compare_exchange(NOTHING, naming, Ordering::SeqCst, Ordering::Relaxed)
            {
                return Changing(word);
            }
            place = (place + 1) % CHANGING;
        }
    }

    /// Whether a thread may have changed states of these sectors without a note of it.
    pub(super) fn is_changing(&self, sectors: &Range<u64>) -> bool {
        (0..CHANGING).any(|place| {
            let changed = named(self.words.changing(place).load(Ordering::SeqCst));
            changed.start < sectors.end && sectors.start < changed.end
        })
    }

    /// Notes what is being changed, for who changes it and may not have come to that yet.
    pub(super) fn note_changing(&self) {
        for place in 0..CHANGING {
            let Range { start, end } = named(self.words.changing(place).load(Ordering::SeqCst));
            // Only what was loaded was changed.
            (start..end.min(format::sectors(self.blocks)))
                .filter(|sector| self.is_loaded(*sector))
                .for_each(|sector| self.mark_dirty(sector));
        }
    }

    /// Notes what a process that had the same words was changing when it died. No other thread may use the map.
    pub(super) fn adopt_changing(&self) {
        self.note_changing();
        for place in 0..CHANGING {
            self.words.changing(place).store(NOTHING, Ordering::SeqCst);
        }
    }
}

/// The word that names some sectors.
fn naming(sectors: &Range<u64>) -> u64 {
    (sectors.start << 32) | (sectors.end - sectors.start).min(u64::from(u32::MAX))
}

/// The sectors that a word names.
fn named(word: u64) -> Range<u64> {
    let (first, count) = (word >> 32, word & u64::from(u32::MAX));
    first..first + count
}

/// The word that the thread takes if it is free.
fn own_place() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static PLACE: usize = THREADS.fetch_add(1, Ordering::Relaxed) % CHANGING;
    }
    PLACE.with(|place| *place)
}
