//! Keeps a disk to its [`Limits`]: requests and bytes a second over all its queues, with bursts.

#![deny(clippy::disallowed_types)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use protocol::Limits;

const SECOND: u64 = 1_000_000_000;

/// A token bucket without a lock: the time at which it will be full again. A request is let through
/// while that is no further ahead than the burst, and moves it on by what it costs; so one that is
/// larger than the burst gets through as well, and those after it pay for it.
#[derive(Default)]
struct Bucket {
    /// Units a second; 0 for no limit.
    rate: AtomicU64,
    /// Nanoseconds.
    burst: AtomicU64,
    /// Nanoseconds since the limiter was made.
    full_at: AtomicU64,
}

impl Bucket {
    /// Changes the limit at the time `now`. What was let through ahead of its time stays as many units, for which is
    /// waited as long as they take at the new rate; without a limit it is forgotten.
    fn set(&self, now: u64, rate: Option<u64>, burst: Option<u64>) {
        let rate = rate.unwrap_or(0);
        let burst = match (rate, burst) {
            (0, _) => 0,
            (rate, Some(units)) => cost(units, rate),
            (_, None) => SECOND / 10,
        };
        self.burst.store(burst, Ordering::Relaxed);
        let before = self.rate.swap(rate, Ordering::Relaxed);
        let rescaled = |full_at: u64| match rate {
            0 => Some(0),
            _ => Some(now.saturating_add(scaled(full_at.saturating_sub(now), before, rate))),
        };
        // It always succeeds: the closure never refuses.
        let _ = self
            .full_at
            .try_update(Ordering::Relaxed, Ordering::Relaxed, rescaled);
    }

    /// How long until the next request may pass.
    fn delay(&self, now: u64) -> u64 {
        if self.rate.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let ahead = self.full_at.load(Ordering::Relaxed).saturating_sub(now);
        ahead.saturating_sub(self.burst.load(Ordering::Relaxed))
    }

    fn charge(&self, now: u64, units: u64) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate > 0 {
            let charged = |full_at: u64| Some(full_at.max(now).saturating_add(cost(units, rate)));
            // It always succeeds: the closure never refuses.
            let _ = self
                .full_at
                .try_update(Ordering::Relaxed, Ordering::Relaxed, charged);
        }
    }
}

/// Nanoseconds that `units` take at `rate` a second.
fn cost(units: u64, rate: u64) -> u64 {
    scaled(units, SECOND, rate)
}

/// `value * by / of`, and no more than a time may be.
fn scaled(value: u64, by: u64, of: u64) -> u64 {
    let scaled = u128::from(value) * u128::from(by) / u128::from(of);
    scaled.min(u128::from(u64::MAX / 4)) as u64
}

/// The limits of a disk, shared by its queues and changed while it is attached.
pub(crate) struct Limiter {
    start: Instant,
    requests: Bucket,
    bytes: Bucket,
}

impl Limiter {
    pub(crate) fn new(limits: &Limits) -> Self {
        let this = Self {
            start: Instant::now(),
            requests: Bucket::default(),
            bytes: Bucket::default(),
        };
        this.set(limits);
        this
    }

    /// Changes the limits; requests that wait follow the new ones.
    pub(crate) fn set(&self, limits: &Limits) {
        let now = self.now();
        self.requests.set(now, limits.iops, limits.iops_burst);
        self.bytes
            .set(now, limits.bandwidth, limits.bandwidth_burst);
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Lets a request of `bytes` bytes through, or tells how long it has to wait before it is to be
    /// tried again.
    pub(crate) fn admit(&self, bytes: u64) -> Result<(), Duration> {
        if self.is_unlimited() {
            return Ok(());
        }
        let now = self.now();
        match self.requests.delay(now).max(self.bytes.delay(now)) {
            0 => {
                self.requests.charge(now, 1);
                self.bytes.charge(now, bytes);
                Ok(())
            }
            wait => Err(Duration::from_nanos(wait)),
        }
    }

    fn is_unlimited(&self) -> bool {
        self.requests.rate.load(Ordering::Relaxed) == 0
            && self.bytes.rate.load(Ordering::Relaxed) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many units pass in `seconds` when as much as possible is asked for, in simulated time.
    fn passed(bucket: &Bucket, each: u64, seconds: u64) -> u64 {
        let (mut now, mut units) = (0, 0);
        while now < seconds * SECOND {
            match bucket.delay(now) {
                0 => {
                    bucket.charge(now, each);
                    units += each;
                }
                wait => now += wait,
            }
        }
        units
    }

    #[test]
    fn the_rate_is_kept_after_the_burst() {
        for (rate, burst, each) in [
            (1000, Some(50), 1),
            (100 << 20, None, 4096),
            (10, Some(1), 1),
        ] {
            let bucket = Bucket::default();
            bucket.set(0, Some(rate), burst);
            let expected = 10 * rate + burst.unwrap_or(rate / 10);
            let units = passed(&bucket, each, 10);
            assert!(
                units.abs_diff(expected) <= 2 * each.max(rate / 1000),
                "{units}, not {expected}"
            );
        }
    }

    #[test]
    fn a_request_larger_than_the_burst_passes_and_is_paid_for() {
        let bucket = Bucket::default();
        bucket.set(0, Some(1000), Some(10));
        assert_eq!(bucket.delay(0), 0);
        bucket.charge(0, 500);
        assert_eq!(bucket.delay(0), 490 * SECOND / 1000);
    }

    #[test]
    fn what_is_owed_stays_as_many_units_when_the_rate_changes() {
        let bucket = Bucket::default();
        let wait_at = |rate| {
            bucket.set(SECOND, Some(rate), Some(0));
            bucket.delay(SECOND)
        };
        wait_at(1000);
        bucket.charge(SECOND, 5000);
        assert_eq!(bucket.delay(SECOND), 5 * SECOND);
        assert_eq!(wait_at(100_000), SECOND / 20);
        assert_eq!(wait_at(500), 10 * SECOND);
        assert_eq!(wait_at(500), 10 * SECOND, "the same limit again");
        // Nothing is owed for what there was no limit of.
        bucket.set(SECOND, None, None);
        assert_eq!(bucket.delay(SECOND), 0);
        bucket.charge(SECOND, 1 << 40);
        assert_eq!(wait_at(500), 0);
    }

    #[test]
    fn no_limit_is_no_limit_and_can_be_taken_back() {
        let limiter = Limiter::new(&Limits::default());
        (0..10_000).for_each(|_| limiter.admit(1 << 30).unwrap());
        limiter.set(&Limits {
            iops: Some(1),
            iops_burst: Some(0),
            ..Limits::default()
        });
        limiter.admit(1).unwrap();
        assert!(limiter.admit(1).is_err());
        limiter.set(&Limits::default());
        limiter.admit(1).unwrap();
    }
}
