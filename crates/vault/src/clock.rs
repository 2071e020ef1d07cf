//! The time that not-before and expiry are compared with, how a time is written, and the clock by which it is measured
//! how long no vault was reached.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
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

/// The present moment by a clock that never jumps, and goes on while the host is suspended: a key is not granted for
/// longer because of that. It is compared only with others of this clock: that of [`Instant::now`] stands still
/// meanwhile.
pub fn boot_instant() -> Instant {
    /// Both clocks at one moment.
    static START: OnceLock<(Instant, Duration)> = OnceLock::new();
    let now = since_boot();
    let (instant, at) = START.get_or_init(|| (Instant::now(), now));
    *instant + now.saturating_sub(*at)
}

fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or_default();
    Duration::new(u64::try_from(now.tv_sec).unwrap_or_default(), nanoseconds)
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
    fn the_time_while_the_host_is_suspended_counts() {
        let first = boot_instant();
        // proc_uptime(5): with the time in suspend, to a hundredth of a second.
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let since_boot = since_boot().as_secs_f64();
        assert!((uptime - since_boot).abs() < 1.0, "{uptime}, {since_boot}");
        std::thread::sleep(Duration::from_millis(20));
        assert!(boot_instant() - first >= Duration::from_millis(20));
    }

    #[test]
    fn a_moment_is_written_in_whole_seconds() {
        let time = OffsetDateTime::UNIX_EPOCH + time::Duration::milliseconds(1_999);
        assert_eq!(moment(time), "1970-01-01T00:00:01Z");
    }
}
