//! How long something is tried again.

use std::time::{Duration, Instant, SystemTime};

use crate::engine::Engine;

/// Repeated attempts at something that fails for a moment.
pub(crate) struct Patience {
    until: Instant,
    pause: Duration,
    /// Whether there was any to begin with.
    is_any: bool,
}

impl Patience {
    /// For so long.
    pub(crate) fn of(time: Duration) -> Self {
        Self {
            until: Instant::now() + time,
            pause: Duration::from_millis(1),
            is_any: !time.is_zero(),
        }
    }

    /// Whether what has failed is to be tried again; waits for the next attempt then.
    pub(crate) fn lasts(&mut self, engine: &dyn Engine) -> bool {
        if !engine.is_repeatable() {
            return false;
        }
        let lasts = self.wait();
        // Who had none does not know for how long it has failed.
        if !lasts && self.is_any {
            engine.give_up();
        }
        lasts
    }

    /// Waits for the next attempt; false when the time is over. Each pause is longer than the one before, and those of
    /// who fail together differ.
    pub(crate) fn wait(&mut self) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let part = now.map_or(0, |now| now.subsec_nanos()) % 8 + 8;
        std::thread::sleep(self.pause * part / 16);
        self.pause = (self.pause * 2).min(Duration::from_millis(250));
        true
    }
}
