//! loom's atomics with the names and the methods of the standard library's, and the death of a process.
//!
//! loom takes sequentially consistent operations for weaker ones, and has fences that are: so one comes between two such
//! operations, and such a store is an exchange, whose place among others loom knows. Processors do it so, too.

use std::cell::Cell;

pub(crate) use loom::cell::UnsafeCell;
pub(crate) use loom::sync::atomic::Ordering;
use loom::sync::atomic::{self, fence};

thread_local! {
    /// Stores that the process still executes. loom has all its threads on one of the system's.
    static STORES: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// A moment's wait for another thread.
pub(crate) fn pause(_turn: u32) {
    loom::thread::yield_now();
}

/// Lets the process execute so many stores, of all threads together, and no more.
pub(crate) fn live_for(stores: u64) {
    STORES.set(stores);
}

/// Whether it has died.
pub(crate) fn is_dead() -> bool {
    STORES.get() == 0
}

/// Whether one more store is executed.
fn executes() -> bool {
    let left = STORES.get();
    STORES.set(left.saturating_sub(1));
    left > 0
}

loom::thread_local! {
    /// Since its last fence the thread has executed a sequentially consistent operation.
    static FENCE_IS_DUE: Cell<bool> = Cell::new(false);
}

/// What an operation does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Loads,
    Changes,
}

/// Between two sequentially consistent operations of a thread there is a fence. It comes as early as it can, so that
/// it does not order others that are not: before a change, but not before another load.
fn before(kind: Kind, order: Ordering) {
    let is_consistent = order == Ordering::SeqCst;
    FENCE_IS_DUE.with(|due| {
        if due.get() && (is_consistent || kind == Kind::Changes) {
            fence(Ordering::SeqCst);
            due.set(false);
        }
        due.set(due.get() || is_consistent);
    });
}

/// As loom is told of an order: what it makes of sequentially consistent ones by itself is not what they are.
fn told(order: Ordering) -> Ordering {
    match order {
        Ordering::SeqCst => Ordering::AcqRel,
        weaker => weaker,
    }
}

/// As [`told`] for a load.
fn told_of_load(order: Ordering) -> Ordering {
    match order {
        Ordering::SeqCst | Ordering::AcqRel => Ordering::Acquire,
        weaker => weaker,
    }
}

macro_rules! atomic {
    ($name:ident, $value:ty, [$($change:ident),*]) => {
        #[derive(Debug)]
        pub(crate) struct $name(atomic::$name);

        impl Default for $name {
            fn default() -> Self {
                Self::new(<$value>::default())
            }
        }

        impl $name {
            pub(crate) fn new(value: $value) -> Self {
                Self(atomic::$name::new(value))
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                before(Kind::Loads, order);
                self.0.load(told_of_load(order))
            }

            pub(crate) fn store(&self, value: $value, order: Ordering) {
                before(Kind::Changes, order);
                match order {
                    _ if !executes() => {}
                    Ordering::SeqCst => {
                        self.0.swap(value, told(order));
                    }
                    _ => self.0.store(value, order),
                }
            }

            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                before(Kind::Changes, order);
                match executes() {
                    true => self.0.swap(value, told(order)),
                    false => self.0.load(Ordering::Relaxed),
                }
            }

            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                before(Kind::Changes, success);
                match executes() {
                    true => self.0.compare_exchange(current, new, told(success), told_of_load(failure)),
                    // Nobody waits for what never comes.
                    false => Ok(current),
                }
            }

            pub(crate) fn try_update(
                &self,
                success: Ordering,
                failure: Ordering,
                mut update: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let mut now = self.load(failure);
                while let Some(new) = update(now) {
                    match self.compare_exchange(now, new, success, failure) {
                        Ok(before) => return Ok(before),
                        Err(other) => now = other,
                    }
                }
                Err(now)
            }

            $(pub(crate) fn $change(&self, value: $value, order: Ordering) -> $value {
                before(Kind::Changes, order);
                match executes() {
                    true => self.0.$change(value, told(order)),
                    false => self.0.load(Ordering::Relaxed),
                }
            })*
        }
    };
}

atomic!(AtomicBool, bool, []);
atomic!(AtomicU32, u32, [fetch_add, fetch_sub, fetch_and, fetch_or]);
atomic!(
    AtomicU64,
    u64,
    [fetch_add, fetch_sub, fetch_and, fetch_or, fetch_max]
);
