//! Writes that are durable by themselves and not known to have ended, of all queues.
//!
//! The kernel says once that it could not make something durable, to one operation. Where that is a write of
//! one queue, a flush of another queue may find nothing wrong and end before the first queue has looked at how its
//! write ended. So a flush whose syncs have succeeded waits until every such write that was begun before
//! is known to have ended; a failure of one is noted by then ([`Volume::set_failed_sync`](super::Volume)).
//!
//! Writes are counted in one of two places. A flush has those that begin from now on counted in the other
//! one, and waits until the first is empty: so it ends however many come.
//!
//! # Why none is missed
//!
//! A write counts itself, and looks then whether its place is still the current one; if not, it counts
//! itself again. All of that is sequentially consistent. So either the flush sees it counted, or the write
//! begins after the flush has changed places, hence after its syncs have ended.

use std::sync::Arc;

use super::sync::{AtomicU64, Ordering};

/// The durable writes of a disk that are under way.
#[derive(Default)]
pub struct DurableWrites {
    /// How often the place was changed; its lowest bit is the current place.
    changes: AtomicU64,
    under_way: [AtomicU64; 2],
}

impl DurableWrites {
    /// Notes that one begins, until the answer is dropped: when it is known how it ended.
    pub fn begin(self: &Arc<Self>) -> DurableWrite {
        loop {
            let changes = self.changes.load(Ordering::SeqCst);
            let write = DurableWrite {
                all: self.clone(),
                place: place(changes),
            };
            self.under_way[write.place].fetch_add(1, Ordering::SeqCst);
            if self.changes.load(Ordering::SeqCst) == changes {
                return write;
            }
        }
    }

    /// What those are waited for by that were begun until now. `None` while some are under way that were begun
    /// before the last call. For one at a time.
    pub fn begun(&self) -> Option<BegunWrites> {
        let changes = self.changes.load(Ordering::SeqCst);
        if self.under_way[place(changes + 1)].load(Ordering::SeqCst) > 0 {
            return None;
        }
        self.changes.store(changes + 1, Ordering::SeqCst);
        Some(BegunWrites(place(changes)))
    }

    /// Whether it is known how all of these ended.
    pub fn have_ended(&self, BegunWrites(place): &BegunWrites) -> bool {
        self.under_way[*place].load(Ordering::SeqCst) == 0
    }
}

fn place(changes: u64) -> usize {
    (changes % 2) as usize
}

/// A durable write under way.
pub struct DurableWrite {
    all: Arc<DurableWrites>,
    place: usize,
}

impl Drop for DurableWrite {
    fn drop(&mut self) {
        self.all.under_way[self.place].fetch_sub(1, Ordering::SeqCst);
    }
}

/// The durable writes that were begun before a moment.
pub struct BegunWrites(usize);

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn those_that_began_before_are_waited_for_and_no_others() {
        let all = Arc::new(DurableWrites::default());
        let (first, second) = (all.begin(), all.begin());
        let begun = all.begun().unwrap();
        let later = all.begin();
        drop(first);
        assert!(!all.have_ended(&begun));
        drop(second);
        assert!(all.have_ended(&begun));
        let begun = all.begun().unwrap();
        assert!(!all.have_ended(&begun));
        drop(later);
        assert!(all.have_ended(&begun));
    }

    #[test]
    fn one_that_nobody_waited_for_keeps_its_place() {
        let all = Arc::new(DurableWrites::default());
        let write = all.begin();
        assert!(all.begun().is_some());
        assert!(all.begun().is_none());
        drop(write);
        assert!(all.begun().is_some());
    }

    #[test]
    fn none_is_missed_by_threads() {
        let all = Arc::new(DurableWrites::default());
        let (began, ended) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let write = all.begin();
                        began.fetch_add(1, Ordering::SeqCst);
                        ended.fetch_add(1, Ordering::SeqCst);
                        drop(write);
                    }
                });
            }
            while ended.load(Ordering::SeqCst) < 40_000 {
                let before = began.load(Ordering::SeqCst);
                let Some(begun) = all.begun() else { continue };
                while !all.have_ended(&begun) {
                    std::thread::yield_now();
                }
                assert!(ended.load(Ordering::SeqCst) >= before);
            }
        });
        assert!(all.under_way.iter().all(|n| n.load(Ordering::SeqCst) == 0));
    }
}
