//! Counters: what happens again and again is recorded once, counted, and recorded as a number.
//!
//! The first of its kind is a record like every other. What follows within the kind's window is
//! counted in a row of `audit_open`, in the transaction in which it happens, so that the death of a
//! process loses nothing. At the end of the window one record says how many there were, from when to
//! when. The rows are covered by the signed head: who can only write the database can no more change
//! a count than a record.

use aws_lc_rs::digest::{Context, SHA256};
use rusqlite::{Connection, Row, ToSql, params, params_from_iter};
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
const MAX_COUNTERS: i64 = 4096;

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

/// The counters, in the order in which they were opened.
pub(super) fn read(db: &Connection) -> Result<Vec<Counter>, AuditError> {
    select(db, "1", [])
}

/// Those that are to be recorded at `now`.
pub(super) fn overdue(db: &Connection, now: OffsetDateTime) -> Result<Vec<Counter>, AuditError> {
    select(db, "closes <= ?", [micros(now)])
}

/// Those of the same caller and key that have counted something.
pub(super) fn beside(db: &Connection, record: &AuditRecord) -> Result<Vec<Counter>, AuditError> {
    let condition = "caller = ? AND key IS ? AND count > 0";
    select(
        db,
        condition,
        params![record.event.caller, record.event.key],
    )
}

/// Which counter is that of an event. A counter's detail is that of the first one.
const OF_KIND: &str = "caller = ? AND origin = ? AND operation = ? AND key IS ? AND version IS ? AND \
                       disk IS ? AND code IS ?";

/// The parameters of [`OF_KIND`].
fn of_kind(event: &Event) -> [&dyn ToSql; 7] {
    let [caller, origin, operation, key, version, disk, _, code] = event.parameters();
    [caller, origin, operation, key, version, disk, code]
}

/// Counts a record of a kind that has a counter; whether it has one.
pub(super) fn count(db: &Connection, record: &AuditRecord) -> Result<bool, AuditError> {
    let (event, time) = (kind(record), text(record.time)?);
    let sql = format!(
        "UPDATE audit_open SET count = count + 1, last = ?, first = coalesce(first, ?) WHERE {OF_KIND}"
    );
    let times: [&dyn ToSql; 2] = [&time, &time];
    let parameters = times.into_iter().chain(of_kind(&event));
    let counted = db
        .prepare_cached(&sql)?
        .execute(params_from_iter(parameters))?;
    Ok(counted > 0)
}

/// Whether a record of this kind would be counted.
pub(super) fn is_open(db: &Connection, record: &AuditRecord) -> Result<bool, AuditError> {
    let sql = format!("SELECT 1 FROM audit_open WHERE {OF_KIND}");
    let event = kind(record);
    Ok(db
        .prepare_cached(&sql)?
        .exists(of_kind(&event).as_slice())?)
}

/// Opens a counter for what is like `record` in the time `window` after it.
pub(super) fn open(
    db: &Connection,
    record: &AuditRecord,
    window: std::time::Duration,
) -> Result<(), AuditError> {
    let open: i64 = db
        .prepare_cached("SELECT count(*) FROM audit_open")?
        .query_row([], |row| row.get(0))?;
    if open >= MAX_COUNTERS {
        return Ok(());
    }
    let event = kind(record);
    let window = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
    let closes = micros(record.time).saturating_add(window);
    let sql = format!(
        "INSERT INTO audit_open ({}, count, first, last, closes, window) \
         VALUES ({}, 0, NULL, NULL, ?, ?)",
        event::COLUMNS,
        event::PARAMETERS
    );
    let times: [&dyn ToSql; 2] = [&closes, &window];
    let parameters = event.parameters().into_iter().chain(times);
    db.prepare_cached(&sql)?
        .execute(params_from_iter(parameters))?;
    Ok(())
}

/// Begins the next window of a counter that was recorded.
pub(super) fn restart(db: &Connection, id: i64, now: OffsetDateTime) -> Result<(), AuditError> {
    let sql = "UPDATE audit_open SET count = 0, first = NULL, last = NULL, closes = ? + window \
               WHERE id = ?";
    db.prepare_cached(sql)?.execute([micros(now), id])?;
    Ok(())
}

/// Removes a counter.
pub(super) fn close(db: &Connection, id: i64) -> Result<(), AuditError> {
    db.prepare_cached("DELETE FROM audit_open WHERE id = ?")?
        .execute([id])?;
    Ok(())
}

fn select(
    db: &Connection,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<Counter>, AuditError> {
    let sql = format!(
        "SELECT {}, id, count, first, last, closes, window FROM audit_open WHERE {condition} ORDER BY id",
        event::COLUMNS
    );
    let mut statement = db.prepare_cached(&sql)?;
    let rows = statement.query_map(parameters, counter)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn counter(row: &Row<'_>) -> rusqlite::Result<Counter> {
    Ok(Counter {
        event: Event::read(row, 0)?,
        id: row.get("id")?,
        count: row.get::<_, i64>("count")?.cast_unsigned(),
        first: row.get("first")?,
        last: row.get("last")?,
        closes: row.get("closes")?,
        window: row.get("window")?,
    })
}

fn micros(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}
