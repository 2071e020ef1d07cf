//! Samples in Prometheus' own format (`io.prometheus.client`), which alone can say native histograms: a scrape asks for
//! it when they are switched on.

use prost::Message;
use protocol::io_counters::BUCKETS;

use crate::catalogue::Kind;
use crate::samples::{Histogram, Samples, Value};

/// What the format is called.
pub(crate) const CONTENT_TYPE: &str = "application/vnd.google.protobuf; \
                                       proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// Four buckets for each power of two.
const SCHEMA: i32 = 2;
/// The highest latency of the first bucket of a data plane, which is the zero bucket: 2^-20 s.
const ZERO: f64 = 1.0 / 1_048_576.0;
/// The native bucket that ends there.
const ZERO_INDEX: i32 = -20 * 4;

#[derive(Clone, PartialEq, Message)]
struct LabelPair {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Number {
    #[prost(double, tag = "1")]
    value: f64,
}

#[derive(Clone, PartialEq, Message)]
struct NativeHistogram {
    #[prost(uint64, tag = "1")]
    sample_count: u64,
    #[prost(double, tag = "2")]
    sample_sum: f64,
    #[prost(message, repeated, tag = "3")]
    bucket: Vec<Bucket>,
    #[prost(sint32, tag = "5")]
    schema: i32,
    #[prost(double, tag = "6")]
    zero_threshold: f64,
    #[prost(uint64, tag = "7")]
    zero_count: u64,
    #[prost(message, repeated, tag = "12")]
    positive_span: Vec<BucketSpan>,
    #[prost(sint64, repeated, tag = "13")]
    positive_delta: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Bucket {
    #[prost(uint64, tag = "1")]
    cumulative_count: u64,
    #[prost(double, tag = "2")]
    upper_bound: f64,
}

#[derive(Clone, PartialEq, Message)]
struct BucketSpan {
    #[prost(sint32, tag = "1")]
    offset: i32,
    #[prost(uint32, tag = "2")]
    length: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    gauge: Option<Number>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Number>,
    #[prost(message, optional, tag = "7")]
    histogram: Option<NativeHistogram>,
}

#[derive(Clone, PartialEq, Message)]
struct MetricFamily {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    help: String,
    #[prost(int32, tag = "3")]
    kind: i32,
    #[prost(message, repeated, tag = "4")]
    metric: Vec<Metric>,
}

/// The bytes of samples.
pub(crate) fn encode(samples: &Samples) -> Vec<u8> {
    let mut encoded = Vec::new();
    for (metric, values) in samples.families() {
        let family = MetricFamily {
            name: metric.name.into(),
            help: metric.help.into(),
            kind: match metric.kind {
                Kind::Counter => 0,
                Kind::Gauge => 1,
                Kind::Histogram => 4,
            },
            metric: values
                .iter()
                .map(|(labels, value)| one(metric.kind, metric.labels, labels, value))
                .collect(),
        };
        // Its length first.
        encoded.extend(family.encode_length_delimited_to_vec());
    }
    encoded
}

fn one(kind: Kind, names: &[&str], labels: &[String], value: &Value) -> Metric {
    let label = |(name, value): (&&str, &String)| LabelPair {
        name: (*name).into(),
        value: value.clone(),
    };
    let mut metric = Metric {
        label: names.iter().zip(labels).map(label).collect(),
        ..Metric::default()
    };
    match value {
        Value::Histogram(histogram) => metric.histogram = Some(native(histogram)),
        Value::Number(value) if kind == Kind::Counter => {
            metric.counter = Some(Number { value: *value });
        }
        Value::Number(value) => metric.gauge = Some(Number { value: *value }),
    }
    metric
}

/// Native and classic in one: Prometheus takes the one that it is set to.
fn native(histogram: &Histogram) -> NativeHistogram {
    let mut native = NativeHistogram {
        sample_count: histogram.count(),
        sample_sum: histogram.seconds,
        schema: SCHEMA,
        zero_threshold: ZERO,
        ..NativeHistogram::default()
    };
    let mut cumulative = 0u64;
    for (upper_bound, count) in histogram.classic() {
        cumulative = cumulative.saturating_add(count);
        native.bucket.push(Bucket {
            cumulative_count: cumulative,
            upper_bound,
        });
    }
    // Offsets count from the end of the span before; those of the first one from 0.
    let (mut next, mut last) = (0, 0i64);
    for (bucket, count) in &histogram.buckets {
        if *bucket == 0 {
            native.zero_count = *count;
            continue;
        }
        // What is over 64 s is in the bucket behind that.
        let index = ZERO_INDEX + i32::from((*bucket).min(BUCKETS as u16 - 1));
        match native.positive_span.last_mut() {
            Some(span) if index == next => span.length += 1,
            _ => native.positive_span.push(BucketSpan {
                offset: index - next,
                length: 1,
            }),
        }
        let count = count.cast_signed();
        native.positive_delta.push(count.wrapping_sub(last));
        (next, last) = (index + 1, count);
    }
    if native.positive_span.is_empty() {
        // One without any is told from a classic one by this.
        native.positive_span.push(BucketSpan::default());
    }
    native
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;

    #[test]
    fn a_native_histogram_has_the_buckets_of_the_data_plane() {
        let histogram = Histogram {
            buckets: vec![(0, 9), (1, 5), (2, 3), (80, 7), (105, 1)],
            seconds: 12.5,
        };
        let native = native(&histogram);
        assert_eq!((native.sample_count, native.zero_count), (25, 9));
        let spans: Vec<_> = native
            .positive_span
            .iter()
            .map(|s| (s.offset, s.length))
            .collect();
        // The bucket that ends at 1 s has the index 0.
        assert_eq!(spans, [(-79, 2), (77, 1), (24, 1)]);
        assert_eq!(native.positive_delta, [5, -2, 4, -6]);
        assert_eq!(native.bucket.last().map(|b| b.cumulative_count), Some(25));
    }

    #[test]
    fn each_family_comes_with_its_length() {
        let mut samples = Samples::default();
        samples.put(&catalogue::REQUESTS, &["web", "read"], 7.0);
        samples.put(&catalogue::EXPORTER_DISKS, &[], 1.0);
        let encoded = encode(&samples);
        let mut rest = encoded.as_slice();
        let first = MetricFamily::decode_length_delimited(&mut rest).unwrap();
        assert_eq!(
            (first.name.as_str(), first.kind),
            ("sealdisk_disk_requests_total", 0)
        );
        assert_eq!(first.metric[0].counter, Some(Number { value: 7.0 }));
        assert_eq!(first.metric[0].label[1].value, "read");
        let second = MetricFamily::decode_length_delimited(&mut rest).unwrap();
        assert_eq!(second.metric[0].gauge, Some(Number { value: 1.0 }));
        assert!(rest.is_empty());
    }
}
