//! Whose turn it is: one flush of a disk runs at a time, for all of its queues, and one queue at a time
//! gives space back.
//!
//! # Group commit
//!
//! Flushes are numbered as they begin. A request that needs a flush asks for the number of the next one,
//! [`Flushes::covering`], and waits until that one, or a later one, is done. A queue with waiting requests
//! that finds no flush under way runs the next. So all requests that come while one runs share the next,
//! whichever queue they are of, and none waits for more than two flushes.
//!
//! A flush that fails for a temporary reason is not done: the next one serves those who wait for its number.
//! A flush that ends wakes the queues that sleep for it.
//!
//! # Why no wake-up is lost
//!
//! `covering` writes to the counter that a flush reads at its beginning (a read-modify-write that adds
//! nothing), so a flush that begins afterwards sees all that was done before. A queue that goes to sleep
//! says so first and looks once more then; a flush that ends says so first and looks for sleepers then.
//! All of that is sequentially consistent, so that one of them sees the other.

use std::sync::{Arc, OnceLock};
use std::task::Waker;

use super::durable_writes::DurableWrites;
use super::sync::{AtomicBool, AtomicU64, Ordering};

/// Queues that can sleep; further ones look again from time to time.
const SLEEPERS: usize = if cfg!(loom) { 2 } else { 256 };

/// The number of a flush, counted since the disk was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlushNumber(u64);

impl FlushNumber {
    /// The first flush, which covers all that a former process left.
    pub const FIRST: Self = Self(1);

    pub(super) fn get(self) -> u64 {
        self.0
    }

    /// What [`FlushNumber::get`] gave, or the first flush for what was never noted.
    pub(super) fn noted(number: u64) -> Self {
        Self(number.max(Self::FIRST.0))
    }
}

/// A queue that may sleep.
#[derive(Default)]
struct Sleeper {
    asleep: AtomicBool,
    waker: OnceLock<Waker>,
}

/// The flushes of a disk.
pub struct Flushes {
    begun: AtomicU64,
    /// The last one that succeeded.
    done: AtomicU64,
    running: AtomicBool,
    sleepers: Box<[Sleeper]>,
    /// Something may be given back since a flush was done.
    holes_due: AtomicBool,
    punching: AtomicBool,
    durable_writes: Arc<DurableWrites>,
}

impl Default for Flushes {
    fn default() -> Self {
        Self {
            begun: AtomicU64::new(0),
            done: AtomicU64::new(0),
            running: AtomicBool::new(false),
            sleepers: (0..SLEEPERS).map(|_| Sleeper::default()).collect(),
            holes_due: AtomicBool::new(false),
            punching: AtomicBool::new(false),
            durable_writes: Arc::default(),
        }
    }
}

impl Flushes {
    /// The flush that covers everything done until now: the next one that begins.
    pub fn covering(&self) -> FlushNumber {
        FlushNumber(self.begun.fetch_add(0, Ordering::SeqCst) + 1)
    }

    /// Whether a flush is done, itself or by a later one.
    pub fn is_done(&self, flush: FlushNumber) -> bool {
        self.done.load(Ordering::SeqCst) >= flush.0
    }

    /// Begins a flush, unless one is under way.
    pub fn try_begin(self: &Arc<Self>) -> Option<FlushTurn> {
        if self.running.swap(true, Ordering::SeqCst) {
            return None;
        }
        let number = FlushNumber(self.begun.fetch_add(1, Ordering::SeqCst) + 1);
        Some(FlushTurn {
            flushes: self.clone(),
            number,
        })
    }

    /// The durable writes of all queues, of which a flush has to know how they ended.
    pub fn durable_writes(&self) -> &Arc<DurableWrites> {
        &self.durable_writes
    }

    /// Flushes begun so far.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// Has `waker` woken when a flush ends while `place` sleeps. False when the place is none or has
    /// another waker already: that queue has to look again from time to time.
    pub fn register(&self, place: usize, waker: &Waker) -> bool {
        let sleeper = self.sleepers.get(place);
        sleeper.is_some_and(|sleeper| sleeper.waker.get_or_init(|| waker.clone()).will_wake(waker))
    }

    /// Has a registered place sleep until the flush that is under way has ended. False, and it does not
    /// sleep, when there is none, or when one is done that it waits for.
    pub fn sleep(&self, place: usize, waits_for: FlushNumber) -> bool {
        let Some(sleeper) = self.sleepers.get(place) else {
            return false;
        };
        sleeper.asleep.store(true, Ordering::SeqCst);
        let sleeps = self.running.load(Ordering::SeqCst) && !self.is_done(waits_for);
        if !sleeps {
            sleeper.asleep.store(false, Ordering::SeqCst);
        }
        sleeps
    }

    fn end(&self) {
        self.running.store(false, Ordering::SeqCst);
        for sleeper in &self.sleepers {
            if sleeper.asleep.swap(false, Ordering::SeqCst)
                && let Some(waker) = sleeper.waker.get()
            {
                waker.wake_by_ref();
            }
        }
    }

    /// Whether a flush was done since a queue last took the turn to give space back.
    pub fn holes_are_due(&self) -> bool {
        self.holes_due.load(Ordering::SeqCst)
    }

    /// Has space given back that may be.
    pub fn set_holes_due(&self) {
        self.holes_due.store(true, Ordering::SeqCst);
    }

    /// Takes the turn to give space back, unless another queue has it.
    pub fn try_punch(self: &Arc<Self>) -> Option<PunchTurn> {
        if self.is_punching() || self.punching.swap(true, Ordering::SeqCst) {
            return None;
        }
        // What a flush makes due from now on is found by another turn.
        self.holes_due.store(false, Ordering::SeqCst);
        Some(PunchTurn(self.clone()))
    }

    /// Whether a queue has that turn.
    pub fn is_punching(&self) -> bool {
        self.punching.load(Ordering::SeqCst)
    }
}

/// A flush under way. Unless it is said to have succeeded it has not.
pub struct FlushTurn {
    flushes: Arc<Flushes>,
    number: FlushNumber,
}

impl FlushTurn {
    /// Its number.
    pub fn number(&self) -> FlushNumber {
        self.number
    }

    /// Data and map are durable as they were when it began.
    pub fn succeed(self) {
        self.flushes.done.store(self.number.0, Ordering::SeqCst);
        self.flushes.set_holes_due();
    }
}

impl Drop for FlushTurn {
    fn drop(&mut self) {
        self.flushes.end();
    }
}

/// The turn to give space back.
pub struct PunchTurn(Arc<Flushes>);

impl Drop for PunchTurn {
    fn drop(&mut self) {
        self.0.punching.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn who_comes_while_a_flush_runs_shares_the_next() {
        let flushes = Arc::new(Flushes::default());
        let first = flushes.covering();
        let turn = flushes.try_begin().unwrap();
        assert_eq!(turn.number(), first);
        let (second, too) = (flushes.covering(), flushes.covering());
        assert_eq!(second, too);
        assert!(flushes.try_begin().is_none() && !flushes.is_done(first));
        turn.succeed();
        assert!(flushes.is_done(first) && !flushes.is_done(second));
        // One that fails is not done, and the next serves those who wait for it.
        drop(flushes.try_begin().unwrap());
        assert!(!flushes.is_done(second));
        flushes.try_begin().unwrap().succeed();
        assert!(flushes.is_done(second));
    }

    #[test]
    fn the_end_of_a_flush_wakes_who_sleeps_for_it() {
        let flushes = Arc::new(Flushes::default());
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        assert!(flushes.register(3, &waker) && flushes.register(3, &waker));
        let other = Waker::from(Arc::new(Count::default()));
        assert!(!flushes.register(3, &other), "the place has another waker");
        assert!(!flushes.register(SLEEPERS, &waker));
        let next = flushes.covering();
        assert!(!flushes.sleep(3, next), "no flush is under way");
        let turn = flushes.try_begin().unwrap();
        assert!(flushes.sleep(3, next));
        drop(turn);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        // It is awake now.
        flushes.try_begin().unwrap().succeed();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        let turn = flushes.try_begin().unwrap();
        assert!(!flushes.sleep(3, next), "that one is done");
        drop(turn);
    }
}
