//! Latencies as they are counted: how many there are in each bucket of [`protocol::io_counters`].

use serde::Serialize;

use protocol::io_counters::{BUCKETS, bucket_end};

/// How many latencies there are in each bucket.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Histogram {
    /// Each bucket that is not empty, with its count, in their order.
    pub buckets: Vec<(u16, u64)>,
}

impl Histogram {
    /// What came to `before` until it was `now`; nothing where a bucket has less than before, since it was counted anew
    /// then.
    pub(crate) fn between(before: &[(u16, u64)], now: &[(u16, u64)]) -> Option<Self> {
        let (before, now) = (dense(before), dense(now));
        let mut buckets = Vec::new();
        for (bucket, (before, now)) in (0u16..).zip(before.into_iter().zip(now)) {
            match now.checked_sub(before)? {
                0 => {}
                more => buckets.push((bucket, more)),
            }
        }
        Some(Self { buckets })
    }

    /// All of several.
    pub fn sum<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sums = [0u64; BUCKETS];
        for (bucket, count) in all.into_iter().flat_map(|one| &one.buckets) {
            if let Some(sum) = sums.get_mut(usize::from(*bucket)) {
                *sum = sum.saturating_add(*count);
            }
        }
        let buckets = (0u16..).zip(sums).filter(|(_, count)| *count > 0);
        Self {
            buckets: buckets.collect(),
        }
    }

    /// How many latencies there are.
    pub fn count(&self) -> u64 {
        let counts = self.buckets.iter().map(|(_, count)| *count);
        counts.fold(0, u64::saturating_add)
    }

    /// The latency in seconds that a fraction of all does not exceed; nothing where there are none. Within a bucket
    /// latencies are taken to be spread evenly on a scale of powers, as Prometheus takes them.
    pub fn quantile(&self, fraction: f64) -> Option<f64> {
        // The data plane, which a guest may have taken over, can have any number there.
        let total: f64 = self.buckets.iter().map(|(_, count)| *count as f64).sum();
        if total <= 0.0 {
            return None;
        }
        let rank = total * fraction.clamp(0.0, 1.0);
        let mut below = 0.0;
        for (bucket, count) in &self.buckets {
            let count = *count as f64;
            if below + count >= rank && count > 0.0 {
                return Some(within(usize::from(*bucket), (rank - below) / count));
            }
            below += count;
        }
        // Sums of floating-point numbers may be a little less than their sum.
        let (last, _) = self.buckets.last()?;
        Some(within(usize::from(*last), 1.0))
    }
}

/// The latency at a fraction of a bucket.
fn within(bucket: usize, fraction: f64) -> f64 {
    match bucket {
        0 => bucket_end(0) * fraction,
        // The last one has no end.
        last if last >= BUCKETS - 1 => bucket_end(BUCKETS - 2),
        bucket => {
            let (begin, end) = (bucket_end(bucket - 1), bucket_end(bucket));
            begin * (end / begin).powf(fraction)
        }
    }
}

fn dense(buckets: &[(u16, u64)]) -> [u64; BUCKETS] {
    let mut counts = [0; BUCKETS];
    for (bucket, count) in buckets {
        // A later version may have more.
        if let Some(at) = counts.get_mut(usize::from(*bucket)) {
            *at = *count;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use protocol::io_counters::{bucket_of, ticks_of};

    fn of(latencies: &[Duration]) -> Histogram {
        let mut counts = [0u64; BUCKETS];
        for latency in latencies {
            counts[bucket_of(ticks_of(*latency))] += 1;
        }
        let buckets: Vec<_> = (0u16..).zip(counts).collect();
        Histogram::between(&[], &buckets).unwrap()
    }

    #[test]
    fn what_came_is_the_difference_and_less_than_before_is_none() {
        let before = [(3, 2), (50, 7)];
        let now = [(3, 2), (40, 1), (50, 9), (900, 4)];
        let more = Histogram::between(&before, &now).unwrap();
        assert_eq!(more.buckets, [(40, 1), (50, 2)]);
        assert_eq!(more.count(), 3);
        assert_eq!(Histogram::between(&now, &before), None);
        assert_eq!(Histogram::between(&before, &[]), None);
        assert_eq!(Histogram::between(&[], &[]).unwrap().quantile(0.5), None);
    }

    #[test]
    fn numbers_that_nobody_can_have_counted_are_no_panic() {
        let most = Histogram {
            buckets: vec![(0, u64::MAX), (105, u64::MAX), (7000, u64::MAX)],
        };
        assert_eq!(most.count(), u64::MAX);
        assert_eq!(most.quantile(1.0), Some(64.0));
        assert_eq!(Histogram::sum([&most, &most]).buckets.len(), 2);
        assert!(most.quantile(f64::NAN).is_some());
    }

    #[test]
    fn sums_have_all_of_each() {
        let (one, two) = (of(&[Duration::from_micros(100); 3]), of(&[Duration::ZERO]));
        let sum = Histogram::sum([&one, &two, &one]);
        assert_eq!(sum.count(), 7);
        assert_eq!(sum.buckets[0], (0, 1));
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_19_per_cent(mut micros in prop::collection::vec(1u64..60_000_000, 1..200), fraction in 0.01f64..1.0) {
            let latencies: Vec<_> = micros.iter().map(|m| Duration::from_micros(*m)).collect();
            let found = of(&latencies).quantile(fraction).unwrap();
            micros.sort_unstable();
            let rank = ((micros.len() as f64 * fraction).ceil() as usize).clamp(1, micros.len());
            let exact = micros[rank - 1] as f64 / 1e6;
            prop_assert!(found >= exact / 1.19 && found <= exact * 1.19, "{found} for {exact}");
        }
    }
}
