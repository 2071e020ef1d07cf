//! How often somebody may try a password.
//!
//! To check one costs tens of milliseconds and megabytes by intent: a few are checked at once, and a user whose
//! password was wrong several times waits, longer each time. Whoever knows the password waits too then, as in Azure; a name that
//! nobody has is treated alike. It is forgotten when the server ends.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Wrong passwords before a user has to wait.
const FREE: u32 = 5;
/// The first wait; each wrong password doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);
/// Users that are remembered.
const USERS: usize = 10_000;
/// Passwords that are checked at once.
const AT_ONCE: usize = 2;

/// Wrong passwords of late, and how many are being checked.
#[derive(Default)]
pub struct Attempts(Mutex<State>);

#[derive(Default)]
struct State {
    wrong: HashMap<String, Wrong>,
    running: usize,
}

struct Wrong {
    count: u32,
    last: Instant,
}

impl Wrong {
    fn wait(&self) -> Duration {
        match self.count.checked_sub(FREE) {
            None => Duration::ZERO,
            Some(doubled) => FIRST_WAIT
                .saturating_mul(1 << doubled.min(10))
                .min(LONGEST_WAIT),
        }
    }
}

/// Why a password is not even looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotNow {
    /// The user has to wait.
    Locked,
    /// Others are being checked.
    Busy,
}

/// A password that is being checked, until it is dropped.
pub(super) struct Attempt<'a> {
    attempts: &'a Attempts,
    user: String,
}

impl Attempts {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a password of a user may be checked now.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn begin(&self, user: &str, now: Instant) -> Result<Attempt<'_>, NotNow> {
        let mut state = self.state();
        let user = user.to_ascii_lowercase();
        let waits = |wrong: &Wrong| now.saturating_duration_since(wrong.last) < wrong.wait();
        if state.wrong.get(&user).is_some_and(waits) {
            return Err(NotNow::Locked);
        }
        if state.running >= AT_ONCE {
            return Err(NotNow::Busy);
        }
        state.running += 1;
        Ok(Attempt {
            attempts: self,
            user,
        })
    }
}

impl Attempt<'_> {
    /// Notes whether the password was right.
    pub(super) fn end(self, right: bool, now: Instant) {
        let mut state = self.attempts.state();
        if right {
            state.wrong.remove(&self.user);
            return;
        }
        if state.wrong.len() >= USERS {
            let old = |wrong: &Wrong| now.saturating_duration_since(wrong.last) > LONGEST_WAIT;
            state.wrong.retain(|_, wrong| !old(wrong));
        }
        if state.wrong.len() >= USERS {
            // Somebody tries names without end: those that have to wait stay.
            state.wrong.retain(|_, wrong| wrong.count >= FREE);
        }
        if state.wrong.len() >= USERS {
            let oldest = state.wrong.iter().min_by_key(|(_, wrong)| wrong.last);
            if let Some(user) = oldest.map(|(user, _)| user.clone()) {
                state.wrong.remove(&user);
            }
        }
        let wrong = state.wrong.entry(self.user.clone()).or_insert(Wrong {
            count: 0,
            last: now,
        });
        wrong.count = wrong.count.saturating_add(1);
        wrong.last = now;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.attempts.state().running -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_wrong_again_and_again_waits_longer_and_longer() {
        let attempts = Attempts::default();
        let mut now = Instant::now();
        let try_at = |now: Instant, right: bool| {
            let attempt = attempts
                .begin("Alice", now)
                .map_err(|why| why == NotNow::Locked);
            attempt.map(|attempt| attempt.end(right, now))
        };
        for _ in 0..FREE {
            try_at(now, false).unwrap();
        }
        assert_eq!(try_at(now, true), Err(true), "the right one, too");
        attempts.begin("bob", now).ok().unwrap().end(false, now);
        now += FIRST_WAIT;
        try_at(now, false).unwrap();
        now += FIRST_WAIT;
        assert_eq!(try_at(now, true), Err(true), "twice as long");
        now += FIRST_WAIT;
        try_at(now, true).unwrap();
        for _ in 0..FREE {
            try_at(now, false).unwrap();
        }
        for _ in 0..40 {
            now += LONGEST_WAIT;
            try_at(now, false).unwrap();
        }
    }

    #[test]
    fn few_are_checked_at_once() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let begun: Vec<_> = (0..AT_ONCE)
            .map(|n| attempts.begin(&n.to_string(), now).ok().unwrap())
            .collect();
        assert_eq!(attempts.begin("x", now).err(), Some(NotNow::Busy));
        drop(begun);
        assert!(attempts.begin("x", now).is_ok());
    }

    #[test]
    fn names_without_end_take_no_memory_without_end() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for n in 0..3 * USERS {
            let attempt = attempts.begin(&n.to_string(), now).ok().unwrap();
            attempt.end(false, now);
        }
        assert!(attempts.state().wrong.len() <= USERS);
    }
}
