//! Waiting for what the kernel lacks for now.

use std::fmt::Display;
use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_micros(100);
const LONGEST: Duration = Duration::from_millis(20);
/// How often it is said at most that something is tried again.
const SAY: Duration = Duration::from_secs(60);

/// Pauses between tries, longer each time until one succeeds.
#[derive(Default)]
pub(super) struct Pause {
    last: Option<Duration>,
    said: Option<Instant>,
}

impl Pause {
    /// How long to wait after another try that failed with `error`.
    pub(super) fn next(&mut self, error: &dyn Display) -> Duration {
        let next = self.last.map_or(FIRST, |last| (2 * last).min(LONGEST));
        self.last = Some(next);
        if next == LONGEST && self.said.is_none_or(|said| said.elapsed() > SAY) {
            self.said = Some(Instant::now());
            log::warn!("the kernel cannot take I/O for now: {error}; it is tried again");
        }
        next
    }

    /// A try has succeeded.
    pub(super) fn end(&mut self) {
        self.last = None;
    }
}
