//! Rates: what two answers of a disk differ by, for each second between them.

use std::time::Duration;

use serde::Serialize;

use crate::histogram::Histogram;
use protocol::io_counters::TICKS;
use protocol::{IoCounters, OpCounters, Operation};

/// What a disk did between two answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rates {
    /// Seconds between the two.
    pub seconds: f64,
    /// Reads.
    pub read: OpRates,
    /// Writes.
    pub write: OpRates,
    /// Flushes.
    pub flush: OpRates,
    /// All other requests: discards, zeros to be written, and what is no request.
    pub other: OpRates,
    /// Reads and writes together.
    pub io: OpRates,
    /// How often a second a request had to wait for a limit of the disk.
    pub limit_waits: f64,
    /// Seconds of each second that requests waited for a limit, over all queues.
    pub limit_wait_seconds: f64,
    /// How often a second a request had to wait for space on the host's storage.
    pub space_waits: f64,
    /// Seconds of each second that queues have busy-polled, over all of them.
    pub poll_seconds: f64,
}

/// What a disk did of one operation, or of several.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OpRates {
    /// Requests a second that were answered.
    pub requests: f64,
    /// Bytes a second.
    pub bytes: f64,
    /// Requests a second that failed or were refused.
    pub errors: f64,
    /// The latency in seconds that half of the requests did not exceed; nothing where there were none.
    pub p50: Option<f64>,
    /// That which 99 % of them did not exceed.
    pub p99: Option<f64>,
    /// Their latencies, for who shows more of them.
    #[serde(skip)]
    pub histogram: Histogram,
}

impl Rates {
    /// What a disk did between two states of its counters; nothing where they began anew in between, or at once.
    pub fn between(before: &IoCounters, now: &IoCounters, time: Duration) -> Option<Self> {
        let seconds = time.as_secs_f64();
        if seconds <= 0.0 {
            return None;
        }
        let sums = |operations: &[Operation]| Sums::between(before, now, operations);
        let read = sums(&[Operation::Read])?;
        let write = sums(&[Operation::Write])?;
        let io = sums(&[Operation::Read, Operation::Write])?;
        let flush = sums(&[Operation::Flush])?;
        let other = sums(&[
            Operation::Discard,
            Operation::WriteZeroes,
            Operation::GetId,
            Operation::Other,
        ])?;
        let rate = |of: fn(&IoCounters) -> u64| {
            let more = of(now).checked_sub(of(before))?;
            Some(more as f64 / seconds)
        };
        let time_rate = |of| Some(rate(of)? / TICKS as f64);
        Some(Self {
            seconds,
            read: read.rates(seconds),
            write: write.rates(seconds),
            flush: flush.rates(seconds),
            other: other.rates(seconds),
            io: io.rates(seconds),
            limit_waits: rate(|counters| counters.limit_waits)?,
            limit_wait_seconds: time_rate(|counters| counters.limit_wait_ticks)?,
            space_waits: rate(|counters| counters.space_waits)?,
            poll_seconds: time_rate(|counters| counters.poll_ticks)?,
        })
    }
}

/// What came to the counters of some operations.
#[derive(Default)]
struct Sums {
    bytes: u64,
    errors: u64,
    histogram: Histogram,
}

impl Sums {
    fn between(before: &IoCounters, now: &IoCounters, operations: &[Operation]) -> Option<Self> {
        let mut sums = Self::default();
        for operation in operations {
            let (before, now) = (of(before, *operation), of(now, *operation));
            let (old, new) = (Words::of(before), Words::of(now));
            sums.bytes = sums.bytes.saturating_add(new.bytes.checked_sub(old.bytes)?);
            sums.errors = sums
                .errors
                .saturating_add(new.errors.checked_sub(old.errors)?);
            let more = Histogram::between(old.buckets, new.buckets)?;
            sums.histogram = Histogram::sum([&sums.histogram, &more]);
        }
        Some(sums)
    }

    fn rates(self, seconds: f64) -> OpRates {
        OpRates {
            requests: self.histogram.count() as f64 / seconds,
            bytes: self.bytes as f64 / seconds,
            errors: self.errors as f64 / seconds,
            p50: self.histogram.quantile(0.5),
            p99: self.histogram.quantile(0.99),
            histogram: self.histogram,
        }
    }
}

/// The words of an operation, which are zeros before it was first asked for.
#[derive(Default)]
struct Words<'a> {
    bytes: u64,
    errors: u64,
    buckets: &'a [(u16, u64)],
}

impl<'a> Words<'a> {
    fn of(counted: Option<&'a OpCounters>) -> Self {
        counted.map_or_else(Self::default, |counted| Self {
            bytes: counted.bytes,
            errors: counted.errors,
            buckets: &counted.buckets,
        })
    }
}

fn of(counters: &IoCounters, operation: Operation) -> Option<&OpCounters> {
    let mut all = counters.operations.iter();
    all.find(|counted| counted.operation == operation)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An operation, its bytes and its buckets.
    type Counted<'a> = (Operation, u64, &'a [(u16, u64)]);

    fn counters(operations: &[Counted<'_>]) -> IoCounters {
        let operations = operations.iter();
        let operations = operations.map(|(operation, bytes, buckets)| OpCounters {
            operation: *operation,
            bytes: *bytes,
            errors: 0,
            latency_ticks: 0,
            buckets: buckets.to_vec(),
        });
        IoCounters {
            operations: operations.collect(),
            ..IoCounters::default()
        }
    }

    #[test]
    fn rates_are_differences_for_each_second() {
        let before = counters(&[(Operation::Read, 4096, &[(40, 1)])]);
        let mut now = counters(&[
            (Operation::Read, 4096 * 11, &[(40, 9), (60, 2)]),
            (Operation::Write, 8192, &[(40, 2)]),
            (Operation::Flush, 0, &[(72, 4)]),
            (Operation::Discard, 1 << 20, &[(50, 1)]),
        ]);
        now.operations[1].errors = 1;
        (now.limit_waits, now.limit_wait_ticks) = (6, TICKS);
        (now.space_waits, now.poll_ticks) = (2, TICKS / 2);
        let rates = Rates::between(&before, &now, Duration::from_secs(2)).unwrap();
        assert_eq!((rates.read.requests, rates.read.bytes), (5.0, 20480.0));
        assert_eq!((rates.write.requests, rates.write.errors), (1.0, 0.5));
        assert_eq!((rates.io.requests, rates.io.bytes), (6.0, 24576.0));
        assert_eq!((rates.flush.requests, rates.flush.bytes), (2.0, 0.0));
        assert_eq!(rates.other.requests, 0.5);
        assert_eq!((rates.limit_waits, rates.limit_wait_seconds), (3.0, 0.5));
        assert_eq!((rates.space_waits, rates.poll_seconds), (1.0, 0.25));
        // Bucket 40 ends at 2^-10 s, bucket 60 at 2^-5 s.
        let p50 = rates.read.p50.unwrap();
        assert!(p50 > 0.8e-3 && p50 <= 1.0 / 1024.0, "{p50}");
        let p99 = rates.read.p99.unwrap();
        assert!(p99 > 0.026 && p99 <= 1.0 / 32.0, "{p99}");
        // Reads and writes together, and flushes by themselves.
        assert_eq!(rates.io.histogram.buckets, [(40, 10), (60, 2)]);
        assert!(rates.flush.p50.unwrap() > 0.2);
    }

    #[test]
    fn a_quiet_disk_has_rates_of_zero_and_no_latency() {
        let still = counters(&[(Operation::Read, 4096, &[(40, 1)])]);
        let rates = Rates::between(&still, &still, Duration::from_secs(1)).unwrap();
        assert_eq!(
            (rates.io.requests, rates.io.p50, rates.io.p99),
            (0.0, None, None)
        );
    }

    #[test]
    fn counters_that_began_anew_have_no_rate() {
        let before = counters(&[(Operation::Read, 4096, &[(40, 5)])]);
        let second = Duration::from_secs(1);
        for now in [
            IoCounters::default(),
            counters(&[(Operation::Read, 8192, &[(40, 4), (41, 9)])]),
            counters(&[(Operation::Read, 1, &[(40, 9)])]),
        ] {
            assert_eq!(Rates::between(&before, &now, second), None, "{now:?}");
        }
        let waited = IoCounters {
            limit_waits: 3,
            ..before.clone()
        };
        assert_eq!(Rates::between(&waited, &before, second), None);
        assert_eq!(Rates::between(&before, &before, Duration::ZERO), None);
    }

    #[test]
    fn numbers_that_nobody_can_have_counted_are_no_panic() {
        let now = counters(&[
            (Operation::Read, u64::MAX, &[(40, u64::MAX), (41, u64::MAX)]),
            (Operation::Write, u64::MAX, &[(105, u64::MAX)]),
        ]);
        let rates = Rates::between(&IoCounters::default(), &now, Duration::from_nanos(1)).unwrap();
        assert!(rates.io.requests.is_finite() && rates.io.bytes.is_finite());
    }
}
