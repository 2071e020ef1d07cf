//! Samples in the text format of OpenMetrics.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::catalogue::Kind;
use crate::samples::{Samples, Value};

/// What the format is called.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The text of samples.
///
/// # Errors
/// Only when there is no memory for it.
pub(crate) fn encode(samples: Samples) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposition(samples)));
    let mut encoded = String::new();
    text::encode(&mut encoded, &registry)?;
    Ok(encoded)
}

#[derive(Debug)]
struct Exposition(Samples);

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (metric, values) in self.0.families() {
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let (name, help) = (metric.base_name(), metric.help);
            let mut encoder = encoder.encode_descriptor(name, help, None, kind)?;
            for (labels, value) in values {
                let labels: Vec<(&str, &str)> = metric
                    .labels
                    .iter()
                    .copied()
                    .zip(labels.iter().map(String::as_str))
                    .collect();
                match labels.is_empty() {
                    true => encode_value(&mut encoder, metric.kind, value)?,
                    false => {
                        encode_value(&mut encoder.encode_family(&labels)?, metric.kind, value)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn encode_value(
    encoder: &mut MetricEncoder<'_>,
    kind: Kind,
    value: &Value,
) -> Result<(), fmt::Error> {
    match value {
        Value::Number(value) if kind == Kind::Counter => {
            encoder.encode_counter::<NoLabelSet, f64, f64>(value, None)
        }
        Value::Number(value) => encoder.encode_gauge(value),
        Value::Histogram(histogram) => {
            let (sum, count) = (histogram.seconds, histogram.count());
            encoder.encode_histogram::<NoLabelSet>(sum, count, &histogram.classic(), None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;
    use crate::samples::Histogram;

    #[test]
    fn the_text_is_that_of_openmetrics() {
        let mut samples = Samples::default();
        samples.put(&catalogue::EXPORTER_DISKS, &[], 2.0);
        samples.put(&catalogue::REQUESTS, &["web", "read"], 7.0);
        let histogram = Histogram {
            buckets: vec![(0, 1), (21, 2), (105, 4)],
            seconds: 300.5,
        };
        samples.put_histogram(&catalogue::LATENCY, &["web", "read"], histogram);
        let text = encode(samples).unwrap();
        for line in [
            "# TYPE sealdisk_exporter_attached_disks gauge",
            "sealdisk_exporter_attached_disks 2.0",
            "# TYPE sealdisk_disk_requests counter",
            "sealdisk_disk_requests_total{disk=\"web\",operation=\"read\"} 7.0",
            "sealdisk_disk_request_duration_seconds_sum{disk=\"web\",operation=\"read\"} 300.5",
            "sealdisk_disk_request_duration_seconds_count{disk=\"web\",operation=\"read\"} 7",
            "sealdisk_disk_request_duration_seconds_bucket{le=\"0.000030517578125\",disk=\"web\",operation=\"read\"} 1",
            "sealdisk_disk_request_duration_seconds_bucket{le=\"64.0\",disk=\"web\",operation=\"read\"} 3",
            "sealdisk_disk_request_duration_seconds_bucket{le=\"+Inf\",disk=\"web\",operation=\"read\"} 7",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
