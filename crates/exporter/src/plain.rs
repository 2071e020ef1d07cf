//! Samples in Prometheus' text format, which is what is told to whoever asks for no other one.

use std::fmt::Write as _;

use crate::catalogue::Metric;
use crate::samples::{Samples, Value};

/// What the format is called.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The text of samples.
pub(crate) fn encode(samples: &Samples) -> String {
    let mut text = String::new();
    for (metric, values) in samples.families() {
        let Metric {
            name, help, kind, ..
        } = metric;
        // A `String` takes all that is written.
        let _ = writeln!(text, "# HELP {name} {help}");
        let _ = writeln!(text, "# TYPE {name} {}", kind.name());
        for (values_of_labels, value) in values {
            let labels = labels(metric, values_of_labels);
            match value {
                Value::Number(value) => line(&mut text, name, &labels, *value),
                Value::Histogram(histogram) => {
                    let mut sum = 0;
                    for (end, count) in histogram.classic() {
                        sum += count;
                        let le = format!("le=\"{}\"", number(end));
                        let labels = joined(&labels, &le);
                        line(&mut text, &format!("{name}_bucket"), &labels, sum as f64);
                    }
                    line(
                        &mut text,
                        &format!("{name}_sum"),
                        &labels,
                        histogram.seconds,
                    );
                    let count = histogram.count() as f64;
                    line(&mut text, &format!("{name}_count"), &labels, count);
                }
            }
        }
    }
    text
}

/// Labels as they stand between braces. None of their values has what would have to be escaped.
fn labels(metric: &Metric, values: &[String]) -> String {
    let pairs = metric.labels.iter().zip(values);
    let pairs: Vec<_> = pairs
        .map(|(name, value)| format!("{name}=\"{value}\""))
        .collect();
    pairs.join(",")
}

fn joined(labels: &str, one: &str) -> String {
    match labels.is_empty() {
        true => one.to_owned(),
        false => format!("{labels},{one}"),
    }
}

fn line(text: &mut String, name: &str, labels: &str, value: f64) {
    let value = number(value);
    // A `String` takes all that is written.
    let _ = match labels.is_empty() {
        true => writeln!(text, "{name} {value}"),
        false => writeln!(text, "{name}{{{labels}}} {value}"),
    };
}

/// A number as the format has it.
fn number(value: f64) -> String {
    match value == f64::INFINITY {
        true => "+Inf".into(),
        false => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;
    use crate::samples::Histogram;

    #[test]
    fn the_text_is_that_of_prometheus() {
        let mut samples = Samples::default();
        samples.put(&catalogue::EXPORTER_DISKS, &[], 2.0);
        samples.put(&catalogue::REQUESTS, &["web", "read"], 7.0);
        let histogram = Histogram {
            buckets: vec![(0, 1), (21, 2), (105, 4)],
            seconds: 300.5,
        };
        samples.put_histogram(&catalogue::LATENCY, &["web", "read"], histogram);
        let text = encode(&samples);
        for line in [
            "# TYPE sealdisk_exporter_attached_disks gauge",
            "sealdisk_exporter_attached_disks 2",
            "# TYPE sealdisk_disk_requests_total counter",
            "sealdisk_disk_requests_total{disk=\"web\",operation=\"read\"} 7",
            "sealdisk_disk_request_duration_seconds_sum{disk=\"web\",operation=\"read\"} 300.5",
            "sealdisk_disk_request_duration_seconds_count{disk=\"web\",operation=\"read\"} 7",
            "sealdisk_disk_request_duration_seconds_bucket{disk=\"web\",operation=\"read\",le=\"0.000030517578125\"} 1",
            "sealdisk_disk_request_duration_seconds_bucket{disk=\"web\",operation=\"read\",le=\"64\"} 3",
            "sealdisk_disk_request_duration_seconds_bucket{disk=\"web\",operation=\"read\",le=\"+Inf\"} 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("# EOF") && text.ends_with('\n'));
    }
}
