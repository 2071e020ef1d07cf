//! Whether a queue's thread still takes its turns.
//!
//! The main thread asks each queue's for a sign of life, again and again. A thread that waits for storage
//! answers, since it waits in its ring, where it is woken. One that does not answer hangs in something that
//! has no end, while its guest waits for it: the process ends then, and another goes on.

#![deny(clippy::disallowed_types)]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

/// How often a sign of life is asked for.
pub(crate) const PERIOD: Duration = Duration::from_secs(3);
/// How often in a row it may fail to come. The asking counts, and not the time: a host that was suspended, or
/// a process that was stopped, has not asked meanwhile.
const PATIENCE: u32 = 10;

/// What a queue's thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    Starting = 0,
    Commands,
    Completions,
    Requests,
    Waiting,
    /// It waits for the other queues, which no sign of life can end.
    Quiesced,
}

const DOING: [Doing; 6] = [
    Doing::Starting,
    Doing::Commands,
    Doing::Completions,
    Doing::Requests,
    Doing::Waiting,
    Doing::Quiesced,
];

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "started",
            Self::Commands => "did what it was told",
            Self::Completions => "completed requests",
            Self::Requests => "took requests",
            Self::Waiting => "waited for its ring of I/O",
            Self::Quiesced => "waited for the other queues",
        })
    }
}

/// What the two threads share.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    asked: AtomicU32,
    answered: AtomicU32,
    doing: AtomicU8,
}

impl Pulse {
    /// Says what the queue's thread does from now on.
    pub(super) fn does(&self, doing: Doing) {
        self.doing.store(doing as u8, Ordering::Relaxed);
    }

    /// Gives the sign of life that was asked for.
    pub(super) fn beat(&self) {
        let asked = self.asked.load(Ordering::Relaxed);
        self.answered.store(asked, Ordering::Relaxed);
    }

    fn doing(&self) -> Doing {
        let doing = usize::from(self.doing.load(Ordering::Relaxed));
        DOING.get(doing).copied().unwrap_or(Doing::Starting)
    }
}

/// The main thread's view of a queue's thread.
pub(crate) struct Watchdog {
    queue: usize,
    pulse: Arc<Pulse>,
    wake: Arc<EventFd>,
    missed: u32,
}

impl Watchdog {
    pub(super) fn new(queue: usize, pulse: Arc<Pulse>, wake: Arc<EventFd>) -> Self {
        Self {
            queue,
            pulse,
            wake,
            missed: 0,
        }
    }

    /// Asks for another sign of life. Tells what is wrong, if too many have not come.
    pub(crate) fn ask(&mut self) -> Option<String> {
        let Pulse {
            asked, answered, ..
        } = &*self.pulse;
        let now = asked.load(Ordering::Relaxed);
        let doing = self.pulse.doing();
        match now == answered.load(Ordering::Relaxed) || doing == Doing::Quiesced {
            true => self.missed = 0,
            false => self.missed += 1,
        }
        if self.missed >= PATIENCE {
            return Some(format!(
                "the thread of queue {} gives no sign of life for {} s; the last that it did: it {doing}",
                self.queue,
                (PERIOD * PATIENCE).as_secs()
            ));
        }
        asked.store(now.wrapping_add(1), Ordering::Relaxed);
        // It fails when the counter is at its end, after 2^64 of these.
        let _ = self.wake.write(1);
        None
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn watchdog() -> (Arc<Pulse>, Watchdog) {
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        let pulse = Arc::new(Pulse::default());
        (pulse.clone(), Watchdog::new(3, pulse, Arc::new(wake)))
    }

    #[test]
    fn a_thread_that_answers_late_is_alive_and_one_that_does_not_is_named() {
        let (pulse, mut watchdog) = watchdog();
        for round in 0..100 {
            assert_eq!(watchdog.ask(), None, "{round}");
            if round % PATIENCE == PATIENCE - 1 {
                pulse.beat();
            }
        }
        pulse.beat();
        pulse.does(Doing::Requests);
        for _ in 0..PATIENCE {
            assert_eq!(watchdog.ask(), None);
        }
        let said = watchdog.ask().unwrap();
        let expected = "the thread of queue 3 gives no sign of life for 30 s; the last that it did: it took requests";
        assert_eq!(said, expected);
    }

    #[test]
    fn one_that_waits_for_the_other_queues_is_not_asked() {
        let (pulse, mut watchdog) = watchdog();
        pulse.does(Doing::Quiesced);
        assert!((0..100).all(|_| watchdog.ask().is_none()));
        pulse.does(Doing::Commands);
        pulse.beat();
        assert!((0..PATIENCE).all(|_| watchdog.ask().is_none()));
        assert!(watchdog.ask().is_some());
    }

    #[test]
    fn what_a_thread_does_is_told_as_it_was_said() {
        let pulse = Pulse::default();
        for doing in DOING {
            pulse.does(doing);
            assert_eq!(pulse.doing(), doing);
        }
    }
}
