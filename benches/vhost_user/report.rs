//! One line for people and one of JSON for each measurement.

use std::fs::File;
use std::io::Write;

use serde_json::{Value, json};

use crate::backends::Kind;
use crate::load::Pattern;

/// What was measured in one run of one pattern on one backend.
pub struct Measured {
    pub requests: u64,
    pub seconds: f64,
    /// User and system time of the backend's processes.
    pub cpu_seconds: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    /// How many CPUs were busy on average with something else.
    pub others: f64,
}

/// Where results go.
pub struct Report {
    json: Option<File>,
    storage: String,
}

impl Report {
    /// Prints, and writes JSON lines to `json`.
    pub fn new(json: Option<File>, storage: String) -> Self {
        println!(
            "{:8} {:24} {:10} {:>9} {:>9} {:>9} {:>8} {:>8} {:>9} {:>7}",
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
        Self { json, storage }
    }

    /// A line of JSON that is no measurement of a pattern.
    pub fn note(&mut self, value: Value) {
        if let Some(json) = &mut self.json {
            writeln!(json, "{value}").unwrap();
        }
    }

    pub fn add(&mut self, name: &str, pattern: &Pattern, kind: Kind, round: u32, run: &Measured) {
        let iops = run.requests as f64 / run.seconds;
        let mbs = iops * f64::from(pattern.bytes) / 1e6;
        let cpu_us = run.cpu_seconds * 1e6 / run.requests as f64;
        println!(
            "{:8} {name:24} {:10} {iops:>9.0} {mbs:>9.1} {cpu_us:>9.2} {:>8.1} {:>8.1} {:>9.1} {:>7.2}",
            self.storage,
            kind.name(),
            run.p50_us,
            run.p99_us,
            run.p999_us,
            run.others
        );
        self.note(json!({
            "storage": self.storage, "pattern": name, "backend": kind.name(), "round": round,
            "bytes": pattern.bytes, "depth": pattern.depth, "write": pattern.write,
            "random": pattern.random, "requests": run.requests, "seconds": run.seconds,
            "iops": iops, "mbs": mbs, "cpu_us": cpu_us, "p50_us": run.p50_us,
            "p99_us": run.p99_us, "p999_us": run.p999_us, "others": run.others,
        }));
    }

    /// What a backend costs that nobody asks anything.
    pub fn add_idle(&mut self, kind: Kind, cpu_seconds: f64, seconds: f64) {
        let per_second = cpu_seconds * 1e6 / seconds;
        println!(
            "{:8} {:24} {:10} {per_second:.0} us CPU per second",
            self.storage,
            "idle",
            kind.name()
        );
        self.note(json!({
            "storage": self.storage, "pattern": "idle", "backend": kind.name(),
            "cpu_us_per_second": per_second,
        }));
    }
}
