//! The time that not-before and expiry are compared with, and how a time is written.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

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

/// A moment in a message, wherever it stands: RFC 3339 in whole seconds, as the log has its own times.
pub fn moment(time: OffsetDateTime) -> String {
    let whole = time.truncate_to_second();
    // Only a year beyond 9999 has no such form.
    whole.format(&Rfc3339).unwrap_or_else(|_| whole.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_in_whole_seconds() {
        let time = OffsetDateTime::UNIX_EPOCH + time::Duration::milliseconds(1_999);
        assert_eq!(moment(time), "1970-01-01T00:00:01Z");
    }
}
