//! A guest must not be able to fill the host's log.

use std::time::{Duration, Instant};

/// The shortest time between two lines of one kind.
const PERIOD: Duration = Duration::from_secs(5);

/// Lets one line through in a while and counts the others.
#[derive(Default)]
pub(crate) struct LogLimit {
    last: Option<Instant>,
    suppressed: u64,
}

impl LogLimit {
    /// Logs a warning, unless there was one a moment ago.
    pub(crate) fn warn(&mut self, text: impl FnOnce() -> String) {
        if self.last.is_some_and(|last| last.elapsed() < PERIOD) {
            self.suppressed += 1;
            return;
        }
        match std::mem::take(&mut self.suppressed) {
            0 => log::warn!("{}", text()),
            n => log::warn!("{} (and {n} more like it before)", text()),
        }
        self.last = Some(Instant::now());
    }
}
