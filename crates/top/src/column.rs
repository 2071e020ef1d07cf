//! The columns of the table: what stands in each, and how disks are sorted by it.

use std::cmp::Ordering;
use std::str::FromStr;

use crate::numbers::{NOTHING, count, latency, megabytes, percent};
use attach::{JobStatus, KeyState};
use live::{DiskRow, Rates, Standing};
use protocol::Line;

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// The disk's name.
    Name,
    /// Reads and writes a second.
    Iops,
    /// Millions of bytes read a second.
    Read,
    /// Millions of bytes written a second.
    Write,
    /// The latency that half of the reads and writes did not exceed.
    P50,
    /// That which 99 % of them did not exceed.
    P99,
    /// Requests that were taken and not answered.
    Queue,
    /// Whether the key is granted.
    Key,
    /// The job with its progress, and what else is to be known.
    Job,
}

impl Column {
    /// All of them, in their order.
    pub const ALL: [Self; 9] = [
        Self::Name,
        Self::Iops,
        Self::Read,
        Self::Write,
        Self::P50,
        Self::P99,
        Self::Queue,
        Self::Key,
        Self::Job,
    ];

    /// What `--sort` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Iops => "iops",
            Self::Read => "read",
            Self::Write => "write",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::Queue => "queue",
            Self::Key => "key",
            Self::Job => "job",
        }
    }

    /// What stands above it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Name => "DISK",
            Self::Iops => "IOPS",
            Self::Read => "rMB/s",
            Self::Write => "wMB/s",
            Self::P50 => "P50",
            Self::P99 => "P99",
            Self::Queue => "QUEUE",
            Self::Key => "KEY",
            Self::Job => "JOB, STATE",
        }
    }

    /// Whether it has numbers, which stand at the right.
    pub(crate) fn has_numbers(self) -> bool {
        !matches!(self, Self::Name | Self::Key | Self::Job)
    }

    /// What it says of a disk.
    pub(crate) fn cell(self, row: &DiskRow, micro: char) -> String {
        let rate = |text: fn(f64) -> String, of: fn(&Rates) -> f64| {
            let rates = row.rates.as_ref();
            rates.map_or_else(|| NOTHING.into(), |rates| text(of(rates)))
        };
        let latency_of =
            |of: fn(&Rates) -> Option<f64>| latency(row.rates.as_ref().and_then(of), micro);
        match self {
            // Another process has said it.
            Self::Name => Line::of(&row.name).as_str().to_owned(),
            Self::Iops => rate(count, |rates| rates.io.requests),
            Self::Read => rate(megabytes, |rates| rates.read.bytes),
            Self::Write => rate(megabytes, |rates| rates.write.bytes),
            Self::P50 => latency_of(|rates| rates.io.p50),
            Self::P99 => latency_of(|rates| rates.io.p99),
            Self::Queue => row
                .in_flight
                .map_or_else(|| NOTHING.into(), |number| count(number as f64)),
            Self::Key => key(row).into(),
            Self::Job => state(row),
        }
    }

    /// How two disks are sorted by it: what is most, or worst, comes first; names are in their order.
    pub(crate) fn compare(self, one: &DiskRow, other: &DiskRow) -> Ordering {
        let rate = |of: fn(&Rates) -> f64| {
            let of = |row: &DiskRow| row.rates.as_ref().map(of);
            descending(of(one), of(other))
        };
        let latency = |of: fn(&Rates) -> Option<f64>| {
            let of = |row: &DiskRow| row.rates.as_ref().and_then(of);
            descending(of(one), of(other))
        };
        let order = match self {
            Self::Name => Ordering::Equal,
            Self::Iops => rate(|rates| rates.io.requests),
            Self::Read => rate(|rates| rates.read.bytes),
            Self::Write => rate(|rates| rates.write.bytes),
            Self::P50 => latency(|rates| rates.io.p50),
            Self::P99 => latency(|rates| rates.io.p99),
            Self::Queue => other.in_flight.cmp(&one.in_flight),
            Self::Key => badness(one).cmp(&badness(other)),
            Self::Job => {
                let has_none = |row: &DiskRow| row.job.is_none();
                let order = has_none(one).cmp(&has_none(other));
                order.then(one.standing.cmp(&other.standing))
            }
        };
        order.then_with(|| one.name.cmp(&other.name))
    }
}

impl FromStr for Column {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|column| column.name() == text);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("there is no such column; there are {names}")
        })
    }
}

/// The highest first, and in the end those of which nothing is known.
fn descending(one: Option<f64>, other: Option<f64>) -> Ordering {
    match (one, other) {
        (Some(one), Some(other)) => other.total_cmp(&one),
        (one, other) => other.is_some().cmp(&one.is_some()),
    }
}

/// What is known of the key, in one word.
fn key(row: &DiskRow) -> &'static str {
    match row.key.as_ref().map(|key| key.state) {
        Some(KeyState::Active) => "active",
        Some(KeyState::KeyUnreachable) => "unreach",
        Some(KeyState::KeyRevoked) => "revoked",
        None => NOTHING,
    }
}

fn badness(row: &DiskRow) -> u8 {
    match row.key.as_ref().map(|key| key.state) {
        Some(KeyState::KeyRevoked) => 0,
        Some(KeyState::KeyUnreachable) => 1,
        None => 2,
        Some(KeyState::Active) => 3,
    }
}

/// The job, and what is wrong; what is wrong with the key stands in its own column.
fn state(row: &DiskRow) -> String {
    match (row.standing, &row.job) {
        (stopped @ (Standing::SpaceFull | Standing::Stalled), _) => stopped.words().into(),
        (_, Some(job)) => progress(job),
        (Standing::Served | Standing::KeyRevoked | Standing::KeyUnreachable, None) => String::new(),
        (standing, None) => standing.words().into(),
    }
}

/// A job in few words.
pub(crate) fn progress(job: &JobStatus) -> String {
    let kind = job.kind;
    match percent(job.bytes_done, job.bytes_total) {
        _ if job.error.is_some() => format!("{kind} stuck"),
        _ if job.paused => format!("{kind} paused"),
        Some(percent) => format!("{kind} {percent}%"),
        None => format!("{kind} ..."),
    }
}
