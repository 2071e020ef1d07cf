//! How long something is tried again.

use std::time::{Duration, Instant, SystemTime};

/// Repeated attempts at something that fails for a moment.
pub(crate) struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    /// For so long.
    pub(crate) fn of(time: Duration) -> Self {
        Self {
            until: Instant::now() + time,
            pause: Duration::from_millis(1),
        }
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
