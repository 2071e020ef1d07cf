//! A ring that one side puts entries into and the other takes them from.

use std::rc::Rc;

use loom::cell::UnsafeCell;
use loom::sync::Notify;
use loom::thread;

use super::check;
use crate::bell::Bell;
use crate::sync::AtomicU64;

const ENTRIES: usize = 2;

/// What both sides have.
struct Ring {
    count: AtomicU64,
    sleeps: AtomicU64,
    entries: [UnsafeCell<u64>; ENTRIES],
    call: Notify,
}

impl Ring {
    /// loom has all its threads on one of the system's.
    fn new() -> Rc<Self> {
        Rc::new(Self {
            count: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
            entries: std::array::from_fn(|_| UnsafeCell::new(0)),
            call: Notify::new(),
        })
    }

    fn bell(&self) -> Bell<'_> {
        Bell {
            count: &self.count,
            sleeps: &self.sleeps,
        }
    }

    /// Puts an entry, and wakes the other side if that sleeps.
    fn put(&self, number: usize) {
        // SAFETY: loom looks whether another thread is at it.
        self.entries[number].with_mut(|entry| unsafe { *entry = number as u64 + 1 });
        if self.bell().publish(number as u64 + 1) {
            self.call.notify();
        }
    }

    /// Takes what there is behind the `taken` entries; how many are taken then.
    fn take(&self, mut taken: usize) -> usize {
        let there = self.bell().count() as usize;
        while taken < there {
            // SAFETY: as above.
            let entry = self.entries[taken].with(|entry| unsafe { *entry });
            assert_eq!(entry, taken as u64 + 1, "it is there when it is counted");
            taken += 1;
        }
        taken
    }
}

/// Who sleeps is woken for what was put, and sees all of it: loom tells of a thread that waits for ever, and of an entry
/// that is looked at while it is put.
pub fn who_waits_for_entries_is_woken_and_sees_them() {
    check(3, || {
        let ring = Ring::new();
        let other = thread::spawn({
            let ring = ring.clone();
            move || (0..ENTRIES).for_each(|number| ring.put(number))
        });
        let mut taken = 0;
        while taken < ENTRIES {
            taken = ring.take(taken);
            if taken < ENTRIES && ring.bell().may_sleep(taken as u64) {
                ring.call.wait();
                ring.bell().awake();
            }
        }
        other.join().unwrap();
    });
}
