//! Counters: what happens again and again is recorded once, counted, and recorded as a number.
//!
//! The first of its kind is a record like every other. What follows within the kind's window is
//! counted in a row of `audit_open`, in the transaction in which it happens, so that the death of a
//! process loses nothing. At the end of the window one record says how many there were, from when to
//! when. The rows are covered by the signed head: who can only write the database can no more change
//! a count than a record.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{Context, SHA256};
use database::{Connection, Row, ToValue, Value, params};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::encoding::{Hash, text};
use super::entry::LogId;
use super::event::{self, Event, hash_texts};
use super::{AuditError, AuditRecord};

/// The table of counters. `closes` and `window` are in microseconds.
pub(super) const TABLE: &str = "
CREATE TABLE audit_open (
    id        INTEGER PRIMARY KEY,
    caller    TEXT NOT NULL,
    origin    TEXT NOT NULL,
    operation TEXT NOT NULL,
    key       TEXT,
    version   TEXT,
    disk      TEXT,
    detail    TEXT,
    code      TEXT,
    count     INTEGER NOT NULL,
    first     TEXT,
    last      TEXT,
    closes    INTEGER NOT NULL,
    window    INTEGER NOT NULL
) STRICT;
CREATE INDEX audit_open_of ON audit_open (caller, operation);
";

/// Counters at a time, at most; what would need another one is recorded each time.
const MAX_COUNTERS: usize = 4096;

/// A counter that is not closed yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Its number.
    pub id: i64,
    /// What is counted. Its origin has nothing that differs from one request to the next (a port, a
    /// process id).
    #[serde(flatten)]
    pub event: Event,
    /// How many there were since the last record.
    pub count: u64,
    /// The first of them, RFC 3339.
    pub first: Option<String>,
    /// The last of them.
    pub last: Option<String>,
    /// When it is recorded, in microseconds since 1970.
    pub closes: i64,
    /// For how long is counted, in microseconds.
    pub window: i64,
}

impl Counter {
    /// What its record says.
    pub fn detail(&self) -> String {
        let text = |time: &Option<String>| time.clone().unwrap_or_default();
        let counted = format!(
            "{} more from {} to {}",
            self.count,
            text(&self.first),
            text(&self.last)
        );
        match &self.event.detail {
            Some(detail) if !detail.is_empty() => format!("{detail}; {counted}"),
            _ => counted,
        }
    }

    /// How many times a record with this detail stands for: those that were counted, where it is of a counter.
    pub fn counted_in(detail: Option<&str>) -> u64 {
        let detail = detail.unwrap_or_default();
        let last = detail.rsplit("; ").next().unwrap_or_default();
        let counted = last.split_once(" more from ");
        let count = counted.and_then(|(count, _)| count.parse().ok());
        count.unwrap_or(1)
    }

    /// Whether it counts what is of that kind. Its own detail is that of the first one.
    fn is_of(&self, kind: &Event) -> bool {
        told_apart_by(&self.event) == told_apart_by(kind)
    }

    fn insert(&self, db: &Connection) -> Result<(), AuditError> {
        let sql = format!(
            "INSERT INTO audit_open ({}, id, count, first, last, closes, \"window\") \
             VALUES ({}, ?, ?, ?, ?, ?, ?)",
            event::COLUMNS,
            event::PARAMETERS
        );
        let own = [
            self.id.to_value(),
            Value::Integer(self.count.cast_signed()),
            self.first.to_value(),
            self.last.to_value(),
            self.closes.to_value(),
            self.window.to_value(),
        ];
        let values: Vec<_> = self.event.values().into_iter().chain(own).collect();
        db.execute(&sql, &values)?;
        Ok(())
    }

    fn update(&self, db: &Connection) -> Result<(), AuditError> {
        let sql = "UPDATE audit_open SET count = ?, first = ?, last = ?, closes = ? WHERE id = ?";
        let count = self.count.cast_signed();
        db.execute(
            sql,
            params![count, self.first, self.last, self.closes, self.id],
        )?;
        Ok(())
    }

    fn hash_into(&self, hash: &mut Context) {
        let mut number = |n: i64| hash.update(&n.to_le_bytes());
        number(self.id);
        number(self.count.cast_signed());
        number(self.closes);
        number(self.window);
        let times = [self.first.as_deref(), self.last.as_deref()];
        hash_texts(hash, self.event.texts().into_iter().chain(times));
    }
}

/// What the head signs for the counters; `None` when there are none.
pub(super) fn digest(log: LogId, counters: &[Counter]) -> Option<Hash> {
    if counters.is_empty() {
        return None;
    }
    let mut hash = Context::new(&SHA256);
    hash.update(b"sealdisk audit counters v1\0");
    hash.update(log.as_bytes());
    for counter in counters {
        counter.hash_into(&mut hash);
    }
    let mut finished = Hash::default();
    finished.copy_from_slice(hash.finish().as_ref());
    Some(finished)
}

/// Where a request came from, without what differs from one to the next.
fn place(origin: &str) -> String {
    match origin.parse::<std::net::SocketAddr>() {
        Ok(address) => address.ip().to_string(),
        Err(_) => origin.split(", pid ").next().unwrap_or(origin).to_owned(),
    }
}

/// The event of which those that are like `record` are counted: refusals are told apart by who, what,
/// key and code, what was done by version and disk too.
fn kind(record: &AuditRecord) -> Event {
    let event = record.event.clone();
    let is_refusal = event.code.is_some();
    let told = |text: Option<String>| text.filter(|_| !is_refusal);
    Event {
        origin: place(&event.origin),
        version: told(event.version),
        disk: told(event.disk),
        ..event
    }
}

/// What tells kinds apart.
fn told_apart_by(kind: &Event) -> [Option<&str>; event::COUNT - 1] {
    let [caller, origin, operation, key, version, disk, _, code] = kind.texts();
    [caller, origin, operation, key, version, disk, code]
}

/// The counters, in the order in which they were opened.
pub(super) fn read(db: &Connection) -> Result<Vec<Counter>, AuditError> {
    let sql = format!(
        "SELECT {}, id, count, first, last, closes, \"window\" FROM audit_open ORDER BY id",
        event::COLUMNS
    );
    db.select(&sql, &[], counter)
}

/// Whether any is to be recorded at `now`.
pub(super) fn has_overdue(db: &Connection, now: OffsetDateTime) -> Result<bool, AuditError> {
    let sql = "SELECT 1 FROM audit_open WHERE closes <= ? LIMIT 1";
    Ok(db.value::<i64>(sql, params![micros(now)])?.is_some())
}

/// Whether a record of this kind would be counted.
pub(super) fn is_open(db: &Connection, record: &AuditRecord) -> Result<bool, AuditError> {
    // What tells kinds apart, in that order.
    let sql = "SELECT 1 FROM audit_open WHERE caller = ? AND origin = ? AND operation = ? \
               AND key IS NOT DISTINCT FROM ? AND version IS NOT DISTINCT FROM ? \
               AND disk IS NOT DISTINCT FROM ? AND code IS NOT DISTINCT FROM ?";
    let event = kind(record);
    let values = told_apart_by(&event).map(event::value);
    Ok(db.value::<i64>(sql, &values)?.is_some())
}

fn counter(row: &Row) -> Result<Counter, AuditError> {
    Ok(Counter {
        event: Event::read(row, 0)?,
        id: row.get("id")?,
        count: row.get::<i64>("count")?.cast_unsigned(),
        first: row.get("first")?,
        last: row.get("last")?,
        closes: row.get("closes")?,
        window: row.get("window")?,
    })
}

/// The counters within a transaction that appends: they are read once, and what has become of them is written once, however
/// many records there are.
pub(super) struct Counters {
    /// In the order in which they were opened.
    all: Vec<Counter>,
    /// From this number on they are not in the database yet.
    first_new: i64,
    next: i64,
    changed: BTreeSet<i64>,
    closed: Vec<i64>,
}

impl Counters {
    /// Those that the database has.
    pub(super) fn of(all: Vec<Counter>) -> Self {
        let next = all.last().map_or(1, |last| last.id.saturating_add(1));
        Self {
            all,
            first_new: next,
            next,
            changed: BTreeSet::new(),
            closed: Vec::new(),
        }
    }

    /// Those that are to be recorded at `now`.
    pub(super) fn overdue(&self, now: OffsetDateTime) -> Vec<Counter> {
        let now = micros(now);
        self.which(|counter| counter.closes <= now)
    }

    /// Those of the same caller and key that have counted something.
    pub(super) fn beside(&self, record: &AuditRecord) -> Vec<Counter> {
        let AuditRecord { event, .. } = record;
        self.which(|counter| {
            let of = &counter.event;
            counter.count > 0 && (&of.caller, &of.key) == (&event.caller, &event.key)
        })
    }

    fn which(&self, condition: impl Fn(&Counter) -> bool) -> Vec<Counter> {
        let found = self.all.iter().filter(|counter| condition(counter));
        found.cloned().collect()
    }

    /// Counts a record of a kind that has a counter; whether it has one.
    pub(super) fn count(&mut self, record: &AuditRecord) -> Result<bool, AuditError> {
        let (event, time) = (kind(record), text(record.time)?);
        let Some(counter) = self.all.iter_mut().find(|counter| counter.is_of(&event)) else {
            return Ok(false);
        };
        counter.count += 1;
        counter.first.get_or_insert_with(|| time.clone());
        counter.last = Some(time);
        self.changed.insert(counter.id);
        Ok(true)
    }

    /// Opens a counter for what is like `record` in the time `window` after it.
    pub(super) fn open(&mut self, record: &AuditRecord, window: std::time::Duration) {
        if self.all.len() >= MAX_COUNTERS {
            return;
        }
        let window = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
        self.all.push(Counter {
            id: self.next,
            event: kind(record),
            count: 0,
            first: None,
            last: None,
            closes: micros(record.time).saturating_add(window),
            window,
        });
        self.next = self.next.saturating_add(1);
    }

    /// Begins the next window of a counter that was recorded.
    pub(super) fn restart(&mut self, id: i64, now: OffsetDateTime) {
        if let Some(counter) = self.all.iter_mut().find(|counter| counter.id == id) {
            (counter.count, counter.first, counter.last) = (0, None, None);
            counter.closes = micros(now).saturating_add(counter.window);
            self.changed.insert(id);
        }
    }

    /// Removes a counter.
    pub(super) fn close(&mut self, id: i64) {
        self.all.retain(|counter| counter.id != id);
        self.closed.push(id);
    }

    /// What the head signs for them.
    pub(super) fn digest(&self, log: LogId) -> Option<Hash> {
        digest(log, &self.all)
    }

    /// Writes what has become of them.
    pub(super) fn write(&self, db: &Connection) -> Result<(), AuditError> {
        for id in self.closed.iter().filter(|id| **id < self.first_new) {
            db.execute("DELETE FROM audit_open WHERE id = ?", params![id])?;
        }
        for counter in &self.all {
            if counter.id >= self.first_new {
                counter.insert(db)?;
            } else if self.changed.contains(&counter.id) {
                counter.update(db)?;
            }
        }
        Ok(())
    }
}

fn micros(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}
