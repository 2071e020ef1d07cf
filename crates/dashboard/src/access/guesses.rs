//! Wrong tokens: how many there are. The right one is let in whatever the number.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wrong ones that are told to be wrong, and logged, one after the other.
const BURST: u32 = 10;
/// After that, one in this time, whoever they come from; others are told to wait.
const EACH: Duration = Duration::from_secs(1);
/// How long the answer to a wrong one takes.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

/// How many wrong tokens were tried: a token bucket for all clients together.
#[derive(Debug)]
pub(crate) struct Guesses(Mutex<Option<Instant>>);

impl Guesses {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether there were not too many.
    pub(crate) fn may_guess(&self) -> bool {
        self.owed(Instant::now()) + EACH <= EACH * BURST
    }

    /// One was wrong.
    pub(crate) fn was_wrong(&self) {
        let now = Instant::now();
        let owed = self.owed(now) + EACH;
        *self.paid_at() = Some(now + owed);
    }

    /// The time in which the wrong ones so far would have been allowed.
    fn owed(&self, now: Instant) -> Duration {
        let paid = *self.paid_at();
        paid.map_or(Duration::ZERO, |paid| paid.saturating_duration_since(now))
    }

    fn paid_at(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_are_taken_and_then_one_a_second() {
        let guesses = Guesses::new();
        for _ in 0..BURST {
            assert!(guesses.may_guess());
            guesses.was_wrong();
        }
        assert!(!guesses.may_guess());
        // Time goes by.
        let paid = guesses.paid_at().unwrap();
        *guesses.paid_at() = Some(paid - EACH - Duration::from_millis(1));
        assert!(guesses.may_guess());
        guesses.was_wrong();
        assert!(!guesses.may_guess());
    }
}
