//! What a process knows of the map sectors of its top layer besides the states: which of them are to be
//! written, which flush makes their changes durable, and which have space to be given back.
//!
//! A sector is one of the map file's: 2016 blocks, 8 MiB of the disk. Which sectors are to be written
//! is kept with the states and outlives the process. All else is memory of the process, which takes none
//! before it is touched; opening a volume finds it out again.

use std::ops::Range;

use super::flushes::FlushNumber;
use super::mapped::Mapped;
use super::sync::{AtomicU64, Ordering};

/// Sectors in a word of a set.
const PER_WORD: u64 = 64;

/// Where a set of sectors lies: a bit for each, and above it a bit for each word that may have some, so
/// that a set of few sectors of many is gone through at the cost of the few.
#[derive(Debug, Clone)]
struct Place {
    words: Range<usize>,
    summary: Range<usize>,
}

/// The notes of all sectors.
pub(super) struct SectorNotes {
    memory: Mapped,
    /// Above the bits that are kept with the states: they count, and this only leads to them.
    dirty: Range<usize>,
    released: Place,
    held: Place,
    strays: Place,
    /// Where the two numbers of each sector start.
    numbers: usize,
    sectors: u64,
}

impl SectorNotes {
    pub(super) fn new(sectors: u64) -> std::io::Result<Self> {
        let mut end = 0;
        let mut take = |count: u64| {
            let start = end;
            end += count as usize;
            start..end
        };
        let words = sectors.div_ceil(PER_WORD);
        let dirty = take(words.div_ceil(PER_WORD));
        let mut place = || Place {
            words: take(words),
            summary: take(words.div_ceil(PER_WORD)),
        };
        let (released, held, strays) = (place(), place(), place());
        let numbers = take(2 * sectors);
        Ok(Self {
            memory: Mapped::private(numbers.end * 8)?,
            dirty,
            released,
            held,
            strays,
            numbers: numbers.start,
            sectors,
        })
    }

    /// Those that the next flush has to write, whose bits are in `words`.
    pub(super) fn dirty<'a>(&'a self, words: &'a [AtomicU64]) -> SectorSet<'a> {
        let summary = self.memory.words(self.dirty.start * 8, self.dirty.len());
        SectorSet { words, summary }
    }

    /// Those of which the durable map is true and names space that was given back since: a flush writes
    /// them when it comes by.
    pub(super) fn released(&self) -> SectorSet<'_> {
        self.set(&self.released)
    }

    /// Those that may have space to be given back.
    pub(super) fn held(&self) -> SectorSet<'_> {
        self.set(&self.held)
    }

    /// Those that may have space under blocks that are inherited: a write failed half-way, or a process died
    /// or the power went before the map said that they are data.
    pub(super) fn strays(&self) -> SectorSet<'_> {
        self.set(&self.strays)
    }

    fn set(&self, place: &Place) -> SectorSet<'_> {
        SectorSet {
            words: self.memory.words(place.words.start * 8, place.words.len()),
            summary: self
                .memory
                .words(place.summary.start * 8, place.summary.len()),
        }
    }

    fn number(&self, sector: u64, which: usize) -> &AtomicU64 {
        &self
            .memory
            .words((self.numbers + 2 * sector as usize + which) * 8, 1)[0]
    }

    /// Notes that blocks of the sector became data, which `flush` makes durable.
    pub(super) fn filled(&self, sector: u64, flush: FlushNumber) {
        self.number(sector, 0)
            .fetch_max(flush.get(), Ordering::SeqCst);
    }

    /// The flush that makes durable which blocks of the sector are data.
    pub(super) fn fill(&self, sector: u64) -> FlushNumber {
        FlushNumber::noted(self.number(sector, 0).load(Ordering::SeqCst))
    }

    /// Notes that blocks of the sector became zeros whose space is held, which `flush` makes durable.
    pub(super) fn discarded(&self, sector: u64, flush: FlushNumber) {
        self.number(sector, 1)
            .fetch_max(flush.get(), Ordering::SeqCst);
    }

    /// The flush that makes durable that blocks of the sector are zeros whose space is held.
    pub(super) fn discard(&self, sector: u64) -> FlushNumber {
        FlushNumber::noted(self.number(sector, 1).load(Ordering::SeqCst))
    }

    /// Takes over what `other` has, which has no more sectors, but for those that are to be written.
    pub(super) fn take_over(&self, other: &Self) {
        for (mine, its) in [
            (self.released(), other.released()),
            (self.held(), other.held()),
            (self.strays(), other.strays()),
        ] {
            let mut from = 0;
            while let Some(sector) = its.next(from) {
                mine.insert(sector);
                from = sector + 1;
            }
        }
        for sector in 0..other.sectors {
            for which in 0..2 {
                let number = other.number(sector, which).load(Ordering::SeqCst);
                if number > 0 {
                    self.number(sector, which).store(number, Ordering::SeqCst);
                }
            }
        }
    }
}

/// A set of sectors, changed by all queues.
#[derive(Clone, Copy)]
pub(super) struct SectorSet<'a> {
    words: &'a [AtomicU64],
    summary: &'a [AtomicU64],
}

impl SectorSet<'_> {
    pub(super) fn insert(self, sector: u64) {
        let (word, bit) = split(sector);
        self.words[word].fetch_or(bit, Ordering::SeqCst);
        // After the bit itself, and even when that was there: the thread that put it there may not have come
        // here yet. Taking the set clears this first.
        let (word, bit) = split(word as u64);
        if self.summary[word].load(Ordering::SeqCst) & bit == 0 {
            self.summary[word].fetch_or(bit, Ordering::SeqCst);
        }
    }

    pub(super) fn remove(self, sector: u64) {
        let (word, bit) = split(sector);
        self.words[word].fetch_and(!bit, Ordering::SeqCst);
    }

    #[cfg(test)]
    #[cfg(not(loom))]
    pub(super) fn contains(self, sector: u64) -> bool {
        let (word, bit) = split(sector);
        self.words[word].load(Ordering::SeqCst) & bit != 0
    }

    /// The first sector of the set from `from` on.
    pub(super) fn next(self, from: u64) -> Option<u64> {
        let (mut index, _) = split(from);
        let mut mask = u64::MAX << (from % PER_WORD);
        while let Some(word) = self.words.get(index) {
            let found = word.load(Ordering::SeqCst) & mask;
            if found != 0 {
                return Some(index as u64 * PER_WORD + u64::from(found.trailing_zeros()));
            }
            mask = u64::MAX;
            index = next_bit(self.summary, index as u64 + 1)? as usize;
        }
        None
    }

    /// Takes all sectors out, in rising order, and adds them to `into`. `first` is told of those of each
    /// word before they are out.
    pub(super) fn take(self, into: &mut Vec<u64>, first: impl Fn(usize, u64)) {
        for (at, summary) in self.summary.iter().enumerate() {
            if summary.load(Ordering::SeqCst) == 0 {
                continue;
            }
            let mut some = summary.swap(0, Ordering::SeqCst);
            while some != 0 {
                let index = at * PER_WORD as usize + some.trailing_zeros() as usize;
                some &= some - 1;
                let mut bits = self.words[index].load(Ordering::SeqCst);
                first(index, bits);
                // What came meanwhile stays, and its thread sets the summary.
                self.words[index].fetch_and(!bits, Ordering::SeqCst);
                while bits != 0 {
                    into.push(index as u64 * PER_WORD + u64::from(bits.trailing_zeros()));
                    bits &= bits - 1;
                }
            }
        }
    }
}

/// The first bit from `from` on that is set.
fn next_bit(words: &[AtomicU64], from: u64) -> Option<u64> {
    let (mut index, _) = split(from);
    let mut mask = u64::MAX << (from % PER_WORD);
    loop {
        let found = words.get(index)?.load(Ordering::SeqCst) & mask;
        if found != 0 {
            return Some(index as u64 * PER_WORD + u64::from(found.trailing_zeros()));
        }
        (mask, index) = (u64::MAX, index + 1);
    }
}

fn split(bit: u64) -> (usize, u64) {
    ((bit / PER_WORD) as usize, 1 << (bit % PER_WORD))
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_of_sectors_is_a_set(
            inserted in prop::collection::btree_set(0u64..20_000, 0..40),
            removed in prop::collection::vec(0u64..20_000, 0..10),
            from in 0u64..20_000,
        ) {
            let notes = SectorNotes::new(20_000).unwrap();
            let mut model = inserted.clone();
            inserted.iter().for_each(|sector| notes.held().insert(*sector));
            for sector in inserted.iter().step_by(3).chain(&removed) {
                notes.held().remove(*sector);
                model.remove(sector);
            }
            prop_assert_eq!(notes.held().next(from), model.range(from..).next().copied());
            prop_assert!(model.iter().all(|sector| notes.held().contains(*sector)));

            let grown = SectorNotes::new(30_000).unwrap();
            notes.filled(7, FlushNumber::noted(5));
            grown.take_over(&notes);
            prop_assert_eq!(grown.fill(7), FlushNumber::noted(5));
            prop_assert_eq!(grown.fill(8), FlushNumber::FIRST);
            let mut taken = Vec::new();
            grown.held().take(&mut taken, |_, _| {});
            prop_assert!(taken.is_sorted());
            prop_assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), model);
            prop_assert_eq!(grown.held().next(0), None);
            prop_assert_eq!(notes.released().next(0), None);
        }
    }
}
