//! One line for people and one of JSON for each measurement.

use std::fs::File;
use std::io::Write;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::backends::Kind;
use crate::pattern::Pattern;

/// What is kept of a distribution of latencies: what fio tells of one too.
pub const QUANTILES: [f64; 10] = [
    0.01, 0.1, 0.5, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999,
];

/// What was measured in one run of one pattern on one backend.
pub struct Measured {
    pub requests: u64,
    pub seconds: f64,
    /// User and system time of the backend's processes.
    pub cpu_seconds: f64,
    /// The latency in microseconds at each of some quantiles; none where nothing waits for an end.
    pub latency: Vec<(f64, f64)>,
    /// How many CPUs were busy on average with something else.
    pub others: f64,
}

impl Measured {
    pub fn iops(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    /// Microseconds, at one of [`QUANTILES`].
    pub fn latency_at(&self, quantile: f64) -> Option<f64> {
        let mut latency = self.latency.iter();
        latency.find(|(q, _)| *q == quantile).map(|(_, us)| *us)
    }
}

/// The latencies of a histogram of nanoseconds, in microseconds.
pub fn quantiles(latency: &Histogram<u64>) -> Vec<(f64, f64)> {
    QUANTILES
        .map(|q| (q, latency.value_at_quantile(q) as f64 / 1e3))
        .to_vec()
}

/// Which run of which pattern on which backend it was.
pub struct Cell {
    pub name: String,
    pub pattern: Pattern,
    pub kind: Kind,
    pub round: u32,
    /// Requests in a second that were due, where there is a fixed rate.
    pub rate: Option<f64>,
}

impl Cell {
    pub fn new(pattern: &Pattern, kind: Kind, round: u32) -> Self {
        Self {
            name: pattern.name(),
            pattern: *pattern,
            kind,
            round,
            rate: None,
        }
    }
}

/// Where results go.
pub struct Report {
    json: Option<File>,
    storage: String,
    has_header: bool,
}

impl Report {
    /// Prints, and writes JSON lines to `json`.
    pub fn new(json: Option<File>, storage: String) -> Self {
        Self {
            json,
            storage,
            has_header: false,
        }
    }

    /// A line of JSON that is no measurement of a pattern. It gets the name of the place.
    pub fn note(&mut self, mut value: Value) {
        value["storage"] = json!(self.storage);
        if let Some(json) = &mut self.json {
            writeln!(json, "{value}").unwrap();
        }
    }

    pub fn add(&mut self, cell: &Cell, run: &Measured) {
        let Cell {
            name,
            pattern,
            kind,
            round,
            rate,
        } = cell;
        if !self.has_header {
            self.has_header = true;
            println!(
                "{:8} {:42} {:17} {:>9} {:>9} {:>9} {:>8} {:>8} {:>9} {:>7}",
                "storage",
                "pattern",
                "backend",
                "IOPS",
                "MB/s",
                "CPU us/IO",
                "p50 us",
                "p99 us",
                "p99.9 us",
                "others"
            );
        }
        let iops = run.iops();
        let mbs = iops * f64::from(pattern.bytes) / 1e6;
        let cpu_us = run.cpu_seconds * 1e6 / run.requests as f64;
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|q| run.latency_at(q));
        let shown = |us: Option<f64>| us.map_or_else(|| "-".to_owned(), |us| format!("{us:.1}"));
        println!(
            "{:8} {name:42} {:17} {iops:>9.0} {mbs:>9.1} {cpu_us:>9.2} {:>8} {:>8} {:>9} {:>7.2}",
            self.storage,
            kind.name(),
            shown(p50),
            shown(p99),
            shown(p999),
            run.others
        );
        self.note(json!({
            "pattern": name, "backend": kind.name(), "round": round, "bytes": pattern.bytes,
            "depth": pattern.depth, "requests": run.requests, "seconds": run.seconds,
            "iops": iops, "mbs": mbs, "cpu_us": cpu_us, "p50_us": p50, "p99_us": p99,
            "p999_us": p999, "latency_us": run.latency, "others": run.others, "rate": rate,
        }));
    }

    /// What a backend costs that nobody asks anything.
    pub fn add_idle(&mut self, kind: Kind, cpu_seconds: f64, seconds: f64) {
        let per_second = cpu_seconds * 1e6 / seconds;
        println!(
            "{:8} {:42} {:17} {per_second:.0} us CPU per second",
            self.storage,
            "idle",
            kind.name()
        );
        self.note(json!({
            "pattern": "idle", "backend": kind.name(), "cpu_us_per_second": per_second,
        }));
    }
}
