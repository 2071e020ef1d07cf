//! How long to look busily for work before sleeping.

use std::time::Duration;

/// Below this a window is not worth the two looks at the clock.
const SHORTEST: Duration = Duration::from_micros(1);

/// A polling window that follows how long the queue was idle lately.
///
/// Sleeping and being woken costs more than a few microseconds of looking. Idle times shorter than
/// the most allowed make the window long enough to catch the next one; longer ones halve it, so that
/// an idle queue, or one on a slow disk, soon sleeps at once.
pub(super) struct Polling {
    window: Duration,
    most: Duration,
}

impl Polling {
    /// Starts without a window; it never gets longer than `most`.
    pub(super) fn new(most: Duration) -> Self {
        Self {
            window: Duration::ZERO,
            most,
        }
    }

    /// How long to look now.
    pub(super) fn window(&self) -> Duration {
        self.window
    }

    /// It did not, or was not tried, and there was no work for `idle` in all.
    pub(super) fn slept(&mut self, idle: Duration) {
        self.window = if idle < self.most {
            self.window.max(idle * 2).min(self.most)
        } else {
            self.window / 2
        };
        if self.window < SHORTEST {
            self.window = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_for_short_idle_times_and_vanishes_for_long_ones() {
        let us = Duration::from_micros;
        let mut polling = Polling::new(us(50));
        assert_eq!(polling.window(), Duration::ZERO);
        polling.slept(us(10));
        assert_eq!(polling.window(), us(20));
        polling.slept(us(40));
        assert_eq!(polling.window(), us(50));
        for _ in 0..6 {
            polling.slept(us(1000));
        }
        assert_eq!(polling.window(), Duration::ZERO);
        let mut off = Polling::new(Duration::ZERO);
        off.slept(us(1));
        assert_eq!(off.window(), Duration::ZERO);
    }
}
