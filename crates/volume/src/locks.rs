//! Which blocks are being worked on, by all queues, without ever waiting.
//!
//! Ordinary reads and writes of whole blocks share a block. What must not overlap with anything in
//! its block takes it exclusively: filling the rest of a block around a smaller write, changing a
//! block of a file that cannot take smaller writes, discarding, punching a hole. Who cannot get its
//! blocks gives back what it has and tries again later, so there is no deadlock.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// Slots, a power of two. Blocks that are this far apart share one, which only costs a retry.
const SLOTS: u64 = 1 << 16;
/// A slot with this value is held exclusively; any other value counts the sharers.
const EXCLUSIVE: u32 = u32::MAX;

/// The most blocks that may be locked in one call.
pub const MOST_BLOCKS: u64 = 4096;

/// Reader-writer marks for ranges of blocks.
pub struct BlockLocks {
    slots: Box<[AtomicU32]>,
}

impl Default for BlockLocks {
    fn default() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| AtomicU32::new(0)).collect(),
        }
    }
}

impl BlockLocks {
    /// Shares all of `blocks`, or none and returns false.
    pub fn try_shared(&self, blocks: Range<u64>) -> bool {
        self.try_all(
            blocks,
            |held| (held < EXCLUSIVE - 1).then(|| held + 1),
            |slot| {
                slot.fetch_sub(1, Ordering::Release);
            },
        )
    }

    /// Ends a successful [`BlockLocks::try_shared`].
    pub fn release_shared(&self, blocks: Range<u64>) {
        for block in blocks {
            self.slot(block).fetch_sub(1, Ordering::Release);
        }
    }

    /// Takes all of `blocks` alone, or none and returns false.
    pub fn try_exclusive(&self, blocks: Range<u64>) -> bool {
        self.try_all(
            blocks,
            |held| (held == 0).then_some(EXCLUSIVE),
            |slot| {
                slot.store(0, Ordering::Release);
            },
        )
    }

    /// Ends a successful [`BlockLocks::try_exclusive`].
    pub fn release_exclusive(&self, blocks: Range<u64>) {
        for block in blocks {
            self.slot(block).store(0, Ordering::Release);
        }
    }

    fn try_all(
        &self,
        blocks: Range<u64>,
        take: impl Fn(u32) -> Option<u32>,
        undo: impl Fn(&AtomicU32),
    ) -> bool {
        debug_assert!(blocks.end - blocks.start <= MOST_BLOCKS);
        for block in blocks.clone() {
            let taken = self
                .slot(block)
                .try_update(Ordering::Acquire, Ordering::Relaxed, &take)
                .is_ok();
            if !taken {
                (blocks.start..block).for_each(|held| undo(self.slot(held)));
                return false;
            }
        }
        true
    }

    fn slot(&self, block: u64) -> &AtomicU32 {
        &self.slots[(block % SLOTS) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sharers_and_owners_exclude_each_other() {
        let locks = BlockLocks::default();
        assert!(locks.try_shared(10..20));
        assert!(locks.try_shared(15..25));
        assert!(!locks.try_exclusive(19..21));
        locks.release_shared(10..20);
        assert!(!locks.try_exclusive(14..16));
        assert!(locks.try_exclusive(13..15));
        assert!(!locks.try_shared(0..100), "14 is taken");
        assert!(
            locks.try_exclusive(0..13),
            "the failed call above gave everything back"
        );
        locks.release_shared(15..25);
        locks.release_exclusive(0..13);
        locks.release_exclusive(13..15);
        assert!(locks.try_exclusive(0..100));
    }
}
