//! The in-flight region of one queue.
//!
//! It has the layout that the vhost-user specification ("Inflight I/O tracking", split virtqueue) gives it,
//! so that a frontend can hand it to whatever back-end comes next:
//!
//! | Offset | Bytes | Field |
//! |---|---|---|
//! | 0 | 8 | `features`: 0 |
//! | 8 | 2 | `version`: 0 while nobody has used it, then 1 |
//! | 10 | 2 | `desc_num`: how many entries there are |
//! | 12 | 2 | `last_batch_head`: the head that was returned last |
//! | 14 | 2 | `used_idx`: the used ring's index, when the region last agreed with it |
//! | 16 + 16 * head | 1 | `inflight`: 1 while the chain of that head is in flight |
//! | 22 + 16 * head | 2 | `next`: the head that was returned before, in the same batch |
//! | 24 + 16 * head | 8 | `counter`: in which order chains were taken |
//!
//! # Order of stores
//!
//! A chain is taken: `counter`, `inflight` = 1. Only then it is looked at.
//!
//! A chain is returned: `next`, `last_batch_head`, the entry and then the index of the used ring,
//! `inflight` = 0, `used_idx`. A process that was killed in between leaves one of these:
//!
//! * The used ring has its old index: the chain is in flight, and is done again. The guest was not told of it.
//! * The used ring has its new index, and `used_idx` the old one: the chain that `last_batch_head` names
//!   is settled, which means that its mark is cleared. It must not be done again, since the guest may
//!   use its memory for something else by now.
//!
//! All chains that were taken are in the used ring or in flight, so the avail ring goes on at the used ring's
//! index plus the number of chains in flight.
//!
//! Nobody reads the region while this process writes it. A kill keeps every store that was executed, so all
//! that is needed is that the compiler keeps their order: each has Release ordering.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{AtomicAccess, Bytes};

use protocol::{INFLIGHT_ENTRY, INFLIGHT_HEADER, INFLIGHT_USED_IDX};
use volume::must_complete::lost;

use super::InflightError;
use super::region::InflightRegion;

const VERSION: usize = 8;
const DESC_NUM: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = INFLIGHT_USED_IDX;

/// Fields of an entry.
#[derive(Debug, Clone, Copy)]
enum Field {
    Inflight = 0,
    Next = 6,
    Counter = 8,
}

/// The layout that is described above.
const SPLIT_LAYOUT: u16 = 1;

/// What a ring goes on with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resumed {
    /// Index of the next entry of the avail ring.
    pub(crate) next_avail: u16,
    /// Heads of chains that were taken and not returned, in the order in which they were taken.
    pub(crate) again: Vec<u16>,
    /// A process before this one served the ring: the guest may not have been notified of what it returned last.
    pub(crate) goes_on: bool,
}

/// The part of an in-flight region that belongs to one queue.
pub(crate) struct InflightQueue {
    region: Arc<InflightRegion>,
    index: usize,
    /// Of the next chain that is taken.
    counter: u64,
}

impl fmt::Debug for InflightQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the in-flight region of queue {}", self.index)
    }
}

impl InflightQueue {
    /// The part of a queue, if the region has one.
    pub(crate) fn of(region: &Arc<InflightRegion>, index: usize) -> Option<Self> {
        region.has(index).then(|| Self {
            region: region.clone(),
            index,
            counter: 0,
        })
    }

    /// Begins to serve a ring of `size` entries, whose used ring has the index `used` and whose avail ring goes
    /// on at `base`, unless the region knows better.
    ///
    /// # Errors
    /// [`InflightError`]: it is no region of this ring, and was left as it was.
    pub(crate) fn begin(
        &mut self,
        size: u16,
        used: u16,
        base: u16,
    ) -> Result<Resumed, InflightError> {
        let entries = self.region.entries();
        if size > entries {
            return Err(InflightError::Entries {
                region: entries,
                queue: size,
            });
        }
        match self.load::<u16>(VERSION) {
            0 => {
                self.format(used);
                return Ok(Resumed {
                    next_avail: base,
                    again: Vec::new(),
                    goes_on: false,
                });
            }
            SPLIT_LAYOUT => {}
            version => return Err(InflightError::Version(version)),
        }
        let region = self.load::<u16>(DESC_NUM);
        if region != entries {
            return Err(InflightError::Entries {
                region,
                queue: entries,
            });
        }
        let mut marked = self.marked(size)?;
        self.settle(size, used, &mut marked)?;
        marked.sort_unstable();
        self.counter = marked.last().map_or(0, |(counter, _)| counter + 1);
        Ok(Resumed {
            next_avail: used.wrapping_add(marked.len() as u16),
            again: marked.into_iter().map(|(_, head)| head).collect(),
            goes_on: true,
        })
    }

    /// Begins anew: the version is stored last, so that a kill leaves a region that nobody has used.
    fn format(&mut self, used: u16) {
        for head in 0..self.region.entries() {
            self.set(head, Field::Inflight, 0u8);
        }
        self.store(DESC_NUM, self.region.entries());
        self.store(LAST_BATCH_HEAD, 0u16);
        self.store(USED_IDX, used);
        self.store(VERSION, SPLIT_LAYOUT);
    }

    /// Has the next ring begin anew: nothing is in flight, and whoever starts it says where.
    pub(crate) fn forget(&mut self) {
        self.store(VERSION, 0u16);
    }

    /// Counter and head of all chains in flight.
    fn marked(&self, size: u16) -> Result<Vec<(u64, u16)>, InflightError> {
        let mut marked = Vec::new();
        for head in 0..self.region.entries() {
            if self.get::<u8>(head, Field::Inflight) == 0 {
                continue;
            }
            if head >= size {
                return Err(InflightError::Head(head));
            }
            let counter = self.get::<u64>(head, Field::Counter);
            // One that is made up must not make the next one the first.
            marked.push((counter.min(u64::MAX / 2), head));
        }
        Ok(marked)
    }

    /// Clears the marks of the chains that are in the used ring, which the last batch was.
    fn settle(
        &mut self,
        size: u16,
        used: u16,
        marked: &mut Vec<(u64, u16)>,
    ) -> Result<(), InflightError> {
        let region = self.load::<u16>(USED_IDX);
        let batch = used.wrapping_sub(region);
        if batch == 0 {
            return Ok(());
        }
        // Without a chain in flight there is nothing to mistake: a ring that was reset, for example.
        if !marked.is_empty() {
            if batch > size {
                return Err(InflightError::UsedIndex { region, ring: used });
            }
            let mut settled = Vec::new();
            let mut head = self.load::<u16>(LAST_BATCH_HEAD);
            for _ in 0..batch {
                if head >= size {
                    return Err(InflightError::Head(head));
                }
                settled.push(head);
                head = self.get(head, Field::Next);
            }
            for head in settled {
                self.set(head, Field::Inflight, 0u8);
                marked.retain(|(_, other)| *other != head);
            }
        }
        self.store(USED_IDX, used);
        Ok(())
    }

    /// A chain was taken.
    pub(crate) fn take(&mut self, head: u16) {
        self.set(head, Field::Counter, self.counter);
        self.set(head, Field::Inflight, 1u8);
        self.counter += 1;
    }

    /// A chain that was taken is in the avail ring again.
    pub(crate) fn put_back(&mut self, head: u16) {
        self.set(head, Field::Inflight, 0u8);
    }

    /// A chain goes into the used ring now.
    pub(crate) fn begin_return(&mut self, head: u16) {
        self.set(head, Field::Next, self.load::<u16>(LAST_BATCH_HEAD));
        self.store(LAST_BATCH_HEAD, head);
    }

    /// The chain is in the used ring, whose index is `used` now.
    pub(crate) fn end_return(&mut self, head: u16, used: u16) {
        self.set(head, Field::Inflight, 0u8);
        self.store(USED_IDX, used);
    }

    fn get<T: AtomicAccess>(&self, head: u16, field: Field) -> T {
        self.load(INFLIGHT_HEADER + INFLIGHT_ENTRY * usize::from(head) + field as usize)
    }

    fn set<T: AtomicAccess>(&mut self, head: u16, field: Field, value: T) {
        self.store(
            INFLIGHT_HEADER + INFLIGHT_ENTRY * usize::from(head) + field as usize,
            value,
        );
    }

    fn load<T: AtomicAccess>(&self, at: usize) -> T {
        match self.region.part(self.index).load(at, Ordering::Acquire) {
            Ok(value) => value,
            Err(error) => lost(&format_args!("{self:?}: {error}")),
        }
    }

    fn store<T: AtomicAccess>(&mut self, at: usize, value: T) {
        #[cfg(test)]
        super::tests::crash_point();
        let stored = self
            .region
            .part(self.index)
            .store(value, at, Ordering::Release);
        if let Err(error) = stored {
            // Heads are below the ring's size, and that is below the region's.
            lost(&format_args!("{self:?}: {error}"));
        }
    }
}
