//! How often somebody may try a password.
//!
//! To check one costs tens of milliseconds and megabytes by intent: a few are checked at once, for each address one and
//! the others after it, and a user whose
//! password was wrong several times waits, longer each time. Whoever knows the password waits too then, as in Azure; a name that
//! nobody has is treated alike. It is forgotten when the server ends.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Wrong passwords before a user has to wait.
const FREE: u32 = 5;
/// The first wait; each wrong password doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);
/// Users that are remembered.
const USERS: usize = 10_000;
/// Passwords that are checked at once, each of another address.
const AT_ONCE: usize = 2;
/// Passwords of one address that wait.
const QUEUE: usize = 4;
/// Passwords that wait.
const QUEUES: usize = 16;
/// How long one waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// Wrong passwords of late, and which are being checked.
#[derive(Default)]
pub struct Attempts {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    wrong: HashMap<String, Wrong>,
    /// From where those are that are being checked.
    running: Vec<IpAddr>,
    /// From where those are that wait, the first first, each with a number.
    waiting: Vec<(u64, IpAddr)>,
    next: u64,
}

impl State {
    fn is_locked(&self, user: &str, now: Instant) -> bool {
        let waits = |wrong: &Wrong| now.saturating_duration_since(wrong.last) < wrong.wait();
        self.wrong.get(user).is_some_and(waits)
    }

    /// Whether it is the turn of who waits with that number.
    fn is_turn(&self, number: u64) -> bool {
        let mut running = self.running.clone();
        for (waits, from) in &self.waiting {
            let may_run = running.len() < AT_ONCE && !running.contains(from);
            if *waits == number {
                return may_run;
            }
            if may_run {
                running.push(*from);
            }
        }
        false
    }

    /// Lines up, if there is room.
    fn line_up(&mut self, from: IpAddr) -> Option<u64> {
        let of_one = self.waiting.iter().filter(|(_, other)| *other == from);
        if of_one.count() >= QUEUE || self.waiting.len() >= QUEUES {
            return None;
        }
        self.next += 1;
        self.waiting.push((self.next, from));
        Some(self.next)
    }
}

/// What one client has addresses of: of IPv6 a network.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
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
    /// Too many others are being checked, or wait for that.
    Busy,
}

/// A password that is being checked, until it is dropped.
pub(super) struct Attempt<'a> {
    attempts: &'a Attempts,
    user: String,
    from: IpAddr,
}

impl Attempts {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a password of a user may be checked now. Waits for its turn.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn begin(
        &self,
        user: &str,
        from: IpAddr,
        now: Instant,
    ) -> Result<Attempt<'_>, NotNow> {
        let (user, from) = (user.to_ascii_lowercase(), network(from));
        let mut state = self.state();
        if state.is_locked(&user, now) {
            return Err(NotNow::Locked);
        }
        let number = state.line_up(from).ok_or(NotNow::Busy)?;
        let begun = Instant::now();
        while !state.is_turn(number) && begun.elapsed() < PATIENCE {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let woken = self.ended.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        let is_turn = state.is_turn(number);
        state.waiting.retain(|(waits, _)| *waits != number);
        // Those before it may have been wrong.
        let locked = state.is_locked(&user, now + begun.elapsed());
        if !is_turn || locked {
            self.ended.notify_all();
            return Err(if locked { NotNow::Locked } else { NotNow::Busy });
        }
        state.running.push(from);
        Ok(Attempt {
            attempts: self,
            user,
            from,
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
        let mut state = self.attempts.state();
        if let Some(at) = state.running.iter().position(|from| *from == self.from) {
            state.running.swap_remove(at);
        }
        drop(state);
        self.attempts.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn who_is_wrong_again_and_again_waits_longer_and_longer() {
        let attempts = Attempts::default();
        let mut now = Instant::now();
        let try_at = |now: Instant, right: bool| {
            let attempt = attempts
                .begin("Alice", address(1), now)
                .map_err(|why| why == NotNow::Locked);
            attempt.map(|attempt| attempt.end(right, now))
        };
        for _ in 0..FREE {
            try_at(now, false).unwrap();
        }
        assert_eq!(try_at(now, true), Err(true), "the right one, too");
        let bob = attempts.begin("bob", address(1), now).ok().unwrap();
        bob.end(false, now);
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
    fn few_are_checked_at_once_and_nobody_keeps_others_out() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let begin = |from: u32| attempts.begin("x", address(from), now);
        let waiting = |count: usize| {
            let begun = Instant::now();
            while attempts.state().waiting.len() != count {
                assert!(begun.elapsed() < 3 * PATIENCE, "not {count} wait");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        std::thread::scope(|scope| {
            let first = begin(1).ok().unwrap();
            let more: Vec<_> = (0..QUEUE)
                .map(|_| scope.spawn(|| begin(1).is_ok()))
                .collect();
            waiting(QUEUE);
            assert_eq!(begin(1).err(), Some(NotNow::Busy));
            // Another address has the other place; a third one waits, and comes before those of the first.
            let other = begin(2).ok().unwrap();
            let third = scope.spawn(|| begin(3).is_ok());
            waiting(QUEUE + 1);
            drop(other);
            assert!(third.join().unwrap());
            waiting(QUEUE);
            drop(first);
            assert!(more.into_iter().all(|one| one.join().unwrap()));
        });
        assert!(attempts.state().running.is_empty());
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:0:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("::ffff:10.0.0.1"), of("::ffff:10.0.0.2"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    #[test]
    fn names_without_end_take_no_memory_without_end() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for n in 0..3 * USERS {
            let attempt = attempts.begin(&n.to_string(), address(1), now);
            attempt.ok().unwrap().end(false, now);
        }
        assert!(attempts.state().wrong.len() <= USERS);
    }
}
