//! The time that not-before and expiry are compared with.

use time::OffsetDateTime;

/// Where a vault gets the time from that not-before and expiry are compared with.
pub trait Clock: Send + Sync {
    /// The present moment.
    fn now(&self) -> OffsetDateTime;
}

/// The system's clock.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }
}
