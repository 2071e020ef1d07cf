//! How one side of a ring tells the other that there is more, and learns whether it has to wake it.

use crate::sync::{AtomicU64, Ordering};

/// Two words of a ring.
#[derive(Clone, Copy)]
pub(crate) struct Bell<'a> {
    /// How many entries there were. Stored by who puts them.
    pub(crate) count: &'a AtomicU64,
    /// 1 while who takes them sleeps. Cleared by whoever wakes it, or by itself.
    pub(crate) sleeps: &'a AtomicU64,
}

impl Bell<'_> {
    /// Lets the other side have the entries up to `count`, which are stored. Whether it has to be woken.
    pub(crate) fn publish(self, count: u64) -> bool {
        // Sequentially consistent, as is what the other side does before it sleeps: one of the two sees the other.
        self.count.store(count, Ordering::SeqCst);
        self.sleeps.load(Ordering::SeqCst) == 1 && self.sleeps.swap(0, Ordering::SeqCst) == 1
    }

    /// How many entries there were, all of which can be loaded after this.
    pub(crate) fn count(self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Says that this side sleeps, unless there are others than the `taken` entries that it knows; whether it may.
    pub(crate) fn may_sleep(self, taken: u64) -> bool {
        self.sleeps.store(1, Ordering::SeqCst);
        let has_more = self.count.load(Ordering::SeqCst) != taken;
        if has_more {
            self.awake();
        }
        !has_more
    }

    /// This side sleeps no more, whoever has woken it.
    pub(crate) fn awake(self) {
        self.sleeps.store(0, Ordering::Relaxed);
    }
}
