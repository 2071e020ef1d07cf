//! How long to busy-poll before sleeping.

#![deny(clippy::disallowed_types)]

use std::time::Duration;

/// Below this a window is not worth the two looks at the clock.
const SHORTEST: Duration = Duration::from_micros(1);

/// What there is to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitingFor {
    /// The guest's next request only.
    Guest,
    /// The store as well.
    Store,
}

/// Polling windows that follow how long the queue was idle lately.
///
/// Sleeping and being woken costs more than a few microseconds of looking. Idle times shorter than
/// the most allowed make the window long enough to catch the next one; longer ones halve it, so that
/// an idle queue, or one on a slow disk, soon sleeps at once. A guest is waited for longer than the
/// store: without being woken it takes its time, while a store that is not done within
/// a few microseconds is a disk, for which a wake-up more does not count.
pub(crate) struct Polling {
    guest: Window,
    store: Window,
}

impl Polling {
    /// Starts without windows; they never get longer than `most`.
    pub(crate) fn new(most: Duration) -> Self {
        Self {
            guest: Window::new(most),
            store: Window::new(most / 8),
        }
    }

    /// How long to look now.
    pub(crate) fn window(&mut self, what: WaitingFor) -> Duration {
        self.of(what).now
    }

    /// Looking did not find work, or was not tried, and there was none for `idle` in all.
    pub(crate) fn slept(&mut self, what: WaitingFor, idle: Duration) {
        self.of(what).slept(idle);
    }

    fn of(&mut self, what: WaitingFor) -> &mut Window {
        match what {
            WaitingFor::Guest => &mut self.guest,
            WaitingFor::Store => &mut self.store,
        }
    }
}

struct Window {
    now: Duration,
    most: Duration,
}

impl Window {
    fn new(most: Duration) -> Self {
        Self {
            now: Duration::ZERO,
            most,
        }
    }

    fn slept(&mut self, idle: Duration) {
        self.now = if idle < self.most {
            self.now.max(idle * 2).min(self.most)
        } else {
            self.now / 2
        };
        if self.now < SHORTEST {
            self.now = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_for_short_idle_times_and_vanishes_for_long_ones() {
        let us = Duration::from_micros;
        let mut window = Window::new(us(50));
        window.slept(us(10));
        assert_eq!(window.now, us(20));
        window.slept(us(40));
        assert_eq!(window.now, us(50));
        for _ in 0..6 {
            window.slept(us(1000));
        }
        assert_eq!(window.now, Duration::ZERO);
        let mut off = Window::new(Duration::ZERO);
        off.slept(us(1));
        assert_eq!(off.now, Duration::ZERO);
    }

    #[test]
    fn a_slow_store_does_not_keep_a_guest_from_being_looked_for() {
        let us = Duration::from_micros;
        let mut polling = Polling::new(us(100));
        for _ in 0..10 {
            polling.slept(WaitingFor::Store, us(90));
            polling.slept(WaitingFor::Guest, us(40));
        }
        assert_eq!(polling.window(WaitingFor::Store), Duration::ZERO);
        assert_eq!(polling.window(WaitingFor::Guest), us(80));
    }
}
