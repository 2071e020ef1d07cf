//! Who has logged in.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::{Hashed, random_text};
use keys::KeyError;

/// How long a session lasts at most.
pub(crate) const LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// How long it lasts without a request: a page that is open makes some all the time.
const IDLE: Duration = Duration::from_secs(3600);
/// Sessions at once: another one ends the oldest.
const MAX_SESSIONS: usize = 64;

/// The sessions of those who have logged in.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<Vec<Session>>);

#[derive(Debug)]
struct Session {
    secret: Hashed,
    begun: Instant,
    last: Instant,
}

impl Session {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.begun) > LIFETIME || now.duration_since(self.last) > IDLE
    }
}

impl Sessions {
    /// Begins a session; what a client shows to be in it.
    ///
    /// # Errors
    /// There are no random numbers.
    pub(crate) fn begin(&self) -> Result<Zeroizing<String>, KeyError> {
        let secret = random_text()?;
        let now = Instant::now();
        let mut sessions = self.open(now);
        if sessions.len() >= MAX_SESSIONS {
            sessions.remove(0);
        }
        sessions.push(Session {
            secret: Hashed::of(&secret),
            begun: now,
            last: now,
        });
        Ok(secret)
    }

    /// Whether that is a session's, which goes on then.
    pub(crate) fn goes_on(&self, secret: &str) -> bool {
        self.goes_on_at(secret, Instant::now())
    }

    fn goes_on_at(&self, secret: &str, now: Instant) -> bool {
        let given = Hashed::of(secret);
        let mut found = false;
        // All are looked at, so that time does not tell which one it is.
        for session in self.open(now).iter_mut() {
            if session.secret.is(&given) {
                session.last = now;
                found = true;
            }
        }
        found
    }

    /// Ends that session.
    pub(crate) fn end(&self, secret: &str) {
        let given = Hashed::of(secret);
        self.open(Instant::now())
            .retain(|session| !session.secret.is(&given));
    }

    /// Those that are not over.
    fn open(&self, now: Instant) -> MutexGuard<'_, Vec<Session>> {
        // Nothing is half changed at any point where a holder could panic.
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|session| !session.is_over(now));
        sessions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_goes_on_until_it_ends_or_is_too_old() {
        let sessions = Sessions::default();
        let (one, two) = (sessions.begin().unwrap(), sessions.begin().unwrap());
        assert!(sessions.goes_on(&one) && sessions.goes_on(&two));
        assert!(!sessions.goes_on("") && !sessions.goes_on(&one[1..]));
        sessions.end(&one);
        assert!(!sessions.goes_on(&one) && sessions.goes_on(&two));
        let start = Instant::now();
        let mut now = start;
        while now.duration_since(start) < LIFETIME {
            assert!(sessions.goes_on_at(&two, now));
            now += IDLE - Duration::from_secs(1);
        }
        now += Duration::from_secs(1);
        assert!(!sessions.goes_on_at(&two, now), "too old");
        let three = sessions.begin().unwrap();
        assert!(
            !sessions.goes_on_at(&three, Instant::now() + IDLE * 2),
            "idle"
        );
    }

    #[test]
    fn there_are_never_many() {
        let sessions = Sessions::default();
        let first = sessions.begin().unwrap();
        for _ in 0..MAX_SESSIONS {
            sessions.begin().unwrap();
        }
        assert!(!sessions.goes_on(&first));
        assert_eq!(sessions.open(Instant::now()).len(), MAX_SESSIONS);
    }
}
