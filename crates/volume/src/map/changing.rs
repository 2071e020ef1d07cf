//! That states are being changed: a process that dies between a change and the note of it leaves the note here.
//!
//! Which sectors a flush has to write is noted after their states, or a flush that takes the note between the
//! two would write the old ones. A death between the two would leave states that the map file never gets, since a request
//! that is done again finds nothing to change. So a thread says first which sectors it changes, in a word of its own
//! that outlives the process as the states do, and takes that back after the note. Who opens the map next notes what
//! such a word names.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::format;
use crate::mapped::CHANGING;

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
        let count = (sectors.end - sectors.start).min(u64::from(u32::MAX));
        let named = (sectors.start << 32) | count;
        // Threads are fewer than words, mostly; where two share one, either takes the next.
        let mut place = own_place();
        loop {
            let word = self.words.changing(place);
            if word.load(Ordering::Relaxed) == NOTHING
                && let Ok(_) =
                    word.compare_exchange(NOTHING, named, Ordering::SeqCst, Ordering::Relaxed)
            {
                return Changing(word);
            }
            place = (place + 1) % CHANGING;
        }
    }

    /// Notes what a process that had the same words was changing when it died. No other thread may use the map.
    pub(super) fn adopt_changing(&self) {
        for place in 0..CHANGING {
            let word = self.words.changing(place);
            let (first, count) = match word.load(Ordering::SeqCst) {
                NOTHING => continue,
                named => (named >> 32, named & u64::from(u32::MAX)),
            };
            let end = (first + count).min(format::sectors(self.blocks));
            // Only what was loaded was changed.
            (first..end)
                .filter(|sector| self.is_loaded(*sector))
                .for_each(|sector| self.mark_dirty(sector));
            word.store(NOTHING, Ordering::SeqCst);
        }
    }
}

/// The word that the thread takes if it is free.
fn own_place() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static PLACE: usize = THREADS.fetch_add(1, Ordering::Relaxed) % CHANGING;
    }
    PLACE.with(|place| *place)
}
