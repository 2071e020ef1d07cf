//! Values of metrics at a moment.

use std::collections::BTreeMap;

use protocol::OpCounters;
use protocol::io_counters::{BUCKETS, TICKS, bucket_end};
use time::OffsetDateTime;

use crate::catalogue::{ALL, Metric};

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// Of a counter or a gauge.
    Number(f64),
    /// Of a histogram.
    Histogram(Histogram),
}

/// Latencies, as a data plane counts them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Histogram {
    /// Each bucket that is not empty, in their order.
    pub(crate) buckets: Vec<(u16, u64)>,
    /// Their sum.
    pub(crate) seconds: f64,
}

/// The buckets of a data plane after which one of a classic histogram ends: 30 µs to 64 s, a factor of two where most
/// latencies are.
const CLASSIC: [u16; 17] = [
    20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 72, 80, 88, 96, 104,
];

impl Histogram {
    pub(crate) fn of(counted: &OpCounters) -> Self {
        // The data plane, which a guest may have taken over, can have any number there; their sum is one too.
        const MAX_COUNT: u64 = 1 << 56;
        let known = |(bucket, _): &(u16, u64)| usize::from(*bucket) < BUCKETS;
        let buckets = counted.buckets.iter().copied().filter(known);
        Self {
            buckets: buckets
                .map(|(bucket, count)| (bucket, count.min(MAX_COUNT)))
                .collect(),
            seconds: seconds(counted.latency_ticks),
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        let counts = self.buckets.iter().map(|(_, count)| *count);
        counts.fold(0, u64::saturating_add)
    }

    /// The buckets of a classic histogram: where each ends, and how many it has for itself. The last one has no end.
    pub(crate) fn classic(&self) -> Vec<(f64, u64)> {
        let mut begin = 0;
        let ends = CLASSIC.into_iter().map(usize::from).chain([BUCKETS - 1]);
        ends.map(|end| {
            let within = self.buckets.iter();
            let within = within.filter(|(b, _)| (begin..=end).contains(&usize::from(*b)));
            let count = within.fold(0, |sum: u64, (_, count)| sum.saturating_add(*count));
            begin = end + 1;
            (bucket_end(end), count)
        })
        .collect()
    }
}

/// Ticks as seconds.
pub(crate) fn seconds(ticks: u64) -> f64 {
    ticks as f64 / TICKS as f64
}

/// A moment as Prometheus has it.
pub(crate) fn timestamp(time: OffsetDateTime) -> f64 {
    time.unix_timestamp_nanos() as f64 / 1e9
}

/// The values of metrics, each under the values of its labels.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(BTreeMap<&'static str, BTreeMap<Vec<String>, Value>>);

impl Samples {
    /// Adds a value under the values of the metric's labels, in their order. Of two under the same ones, which would make
    /// the whole scrape invalid, the first counts.
    pub(crate) fn put(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        self.add(metric, labels, Value::Number(value));
    }

    /// Adds a histogram.
    pub(crate) fn put_histogram(
        &mut self,
        metric: &'static Metric,
        labels: &[&str],
        histogram: Histogram,
    ) {
        self.add(metric, labels, Value::Histogram(histogram));
    }

    fn add(&mut self, metric: &'static Metric, labels: &[&str], value: Value) {
        debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
        let labels = labels.iter().map(|label| plain(label)).collect();
        let of_metric = self.0.entry(metric.name).or_default();
        of_metric.entry(labels).or_insert(value);
    }

    /// Adds all of another.
    pub(crate) fn add_all(&mut self, other: &Self) {
        for (name, values) in &other.0 {
            let of_metric = self.0.entry(name).or_default();
            for (labels, value) in values {
                of_metric.entry(labels.clone()).or_insert(value.clone());
            }
        }
    }

    /// The metrics that have values, with these.
    pub(crate) fn families(
        &self,
    ) -> impl Iterator<Item = (&'static Metric, &BTreeMap<Vec<String>, Value>)> {
        ALL.iter()
            .filter_map(|metric| Some((*metric, self.0.get(metric.name)?)))
    }

    /// The value of a counter or a gauge.
    #[cfg(test)]
    pub(crate) fn value(&self, metric: &Metric, labels: &[&str]) -> Option<f64> {
        let labels: Vec<_> = labels.iter().map(ToString::to_string).collect();
        match self.0.get(metric.name)?.get(&labels)? {
            Value::Number(value) => Some(*value),
            Value::Histogram(_) => None,
        }
    }
}

/// The value of a label without what would have to be escaped, and not too long: it may come from another process.
fn plain(label: &str) -> String {
    let is_plain = |c: char| !c.is_control() && c != '"' && c != '\\';
    let plain = |c| if is_plain(c) { c } else { '_' };
    label.chars().map(plain).take(256).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;

    #[test]
    fn classic_buckets_have_all_that_was_counted() {
        let buckets: Vec<_> = (0..BUCKETS as u16).map(|b| (b, u64::from(b) + 1)).collect();
        let histogram = Histogram {
            buckets,
            seconds: 1.0,
        };
        let classic = histogram.classic();
        let sum: u64 = classic.iter().map(|(_, count)| count).sum();
        assert_eq!(sum, histogram.count());
        assert_eq!(classic[0], (2f64.powi(-15), (1..=21).sum::<u64>()));
        assert_eq!(classic.last(), Some(&(f64::INFINITY, 106)));
        let ends: Vec<_> = classic.iter().map(|(end, _)| *end).collect();
        assert!(ends.is_sorted());
    }

    #[test]
    fn a_label_that_comes_twice_counts_once() {
        let mut samples = Samples::default();
        samples.put(&catalogue::DISK_UP, &["a"], 1.0);
        samples.put(&catalogue::DISK_UP, &["a"], 0.0);
        samples.put(&catalogue::DISK_UP, &["b\"\n\\"], 1.0);
        assert_eq!(samples.value(&catalogue::DISK_UP, &["a"]), Some(1.0));
        assert_eq!(samples.value(&catalogue::DISK_UP, &["b___"]), Some(1.0));
    }
}
