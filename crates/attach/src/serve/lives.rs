//! How long the next data plane waits for its start.
//!
//! One that dies is replaced at once. One after another that die soon are not: whatever it is that they die of
//! is still there, and to start them takes the host's time. While guests get something done meanwhile the
//! pause stays short, so that they notice no more than a stall.

use std::time::{Duration, Instant};

/// A data plane that has lived for so long has nothing to do with the one before.
const LONG: Duration = Duration::from_secs(10);
/// The first pause.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// The lives of a disk's data planes.
#[derive(Debug)]
pub(crate) struct Lives {
    began: Instant,
    /// How far the queues were then.
    progress: Vec<u16>,
    /// How many died before, one after the other, that did not live for long.
    short: u32,
    /// How many of these in a row have completed nothing.
    idle: u32,
}

impl Lives {
    /// The first, which begins now.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            began: now,
            progress: Vec::new(),
            short: 0,
            idle: 0,
        }
    }

    /// Another one begins, when the queues are as far as that.
    pub(crate) fn begin(&mut self, now: Instant, progress: Vec<u16>) {
        (self.began, self.progress) = (now, progress);
    }

    /// It died, when the queues were as far as that. How long the next one waits.
    pub(crate) fn died(&mut self, now: Instant, progress: &[u16]) -> Duration {
        if now.saturating_duration_since(self.began) >= LONG {
            (self.short, self.idle) = (0, 0);
        }
        self.short += 1;
        match progress == self.progress {
            true => self.idle += 1,
            false => self.idle = 0,
        }
        // For the next one, which may not come as far as to begin.
        self.begin(now, progress.to_vec());
        if self.short == 1 {
            self.idle = 0;
            return Duration::ZERO;
        }
        let doubled = 1u32
            .checked_shl(self.idle.saturating_sub(1))
            .unwrap_or(u32::MAX);
        PAUSE.saturating_mul(doubled).min(MAX_PAUSE)
    }

    /// How many died one after the other, each soon after its start.
    pub(crate) fn in_a_row(&self) -> u32 {
        self.short
    }

    /// How many died, one after the other, before the one that is started next, the last one apart.
    pub(crate) fn short(&self) -> u32 {
        self.short.saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_grow_while_nothing_gets_done_and_are_over_after_a_long_life() {
        let mut now = Instant::now();
        let mut lives = Lives::new(now);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            now += SECOND;
            pauses.push(lives.died(now, &[]));
            lives.begin(now, Vec::new());
        }
        let millis: Vec<_> = pauses.iter().map(Duration::as_millis).collect();
        let expected = [
            0, 250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000, 30000,
        ];
        assert_eq!(millis, expected);
        assert_eq!((lives.short(), lives.in_a_row()), (11, 12));
        now += LONG;
        assert_eq!(lives.died(now, &[]), Duration::ZERO);
        assert_eq!(lives.short(), 0);
    }

    #[test]
    fn those_that_never_begin_are_short_lives_too() {
        let begun = Instant::now();
        let mut lives = Lives::new(begun);
        let mut now = begun + 100 * LONG;
        assert_eq!(lives.died(now, &[3]), Duration::ZERO);
        for pause in [PAUSE, 2 * PAUSE, 4 * PAUSE] {
            now += SECOND;
            assert_eq!(lives.died(now, &[3]), pause);
        }
    }

    #[test]
    fn a_guest_that_gets_something_done_waits_for_less_than_a_second() {
        let mut now = Instant::now();
        let mut lives = Lives::new(now);
        for done in 1..100 {
            now += SECOND / 4;
            assert!(lives.died(now, &[done, 7]) <= PAUSE);
            lives.begin(now, vec![done, 7]);
        }
        for _ in 0..40 {
            lives.died(now, &[99, 7]);
        }
        assert_eq!(lives.died(now, &[99, 7]), MAX_PAUSE);
        assert_eq!(lives.died(now, &[99, 8]), PAUSE);
    }
}
