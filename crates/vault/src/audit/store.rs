//! The rows of a log in its database.

use database::{Connection, ErrorKind, Mode, Row, ToValue, Value, params};
use uuid::Uuid;

use super::counter::Counter;
use super::encoding::{Hash, number};
use super::entry::{Entry, Head, LogId, StoredEntry};
use super::event::{self, Event};
use super::line::ExportedLog;
use super::signer::PublicKey;
use super::{AuditError, counter, segment};

/// The tables of a log. Records are only ever appended; what ties them together is in
/// [`Entry::hash`] and in the signatures.
pub const TABLES: &str = "
CREATE TABLE audit_log (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    log_id     TEXT NOT NULL,
    created    TEXT NOT NULL,
    public_key BLOB NOT NULL,
    sealed_key BLOB NOT NULL
) STRICT;
CREATE TABLE audit (
    seq       INTEGER PRIMARY KEY,
    time      TEXT NOT NULL,
    caller    TEXT NOT NULL,
    origin    TEXT NOT NULL,
    operation TEXT NOT NULL,
    key       TEXT,
    version   TEXT,
    disk      TEXT,
    detail    TEXT,
    code      TEXT,
    hash      BLOB NOT NULL
) STRICT;
CREATE TABLE audit_head (
    id        INTEGER PRIMARY KEY CHECK (id = 1),
    seq       INTEGER NOT NULL,
    hash      BLOB NOT NULL,
    time      TEXT NOT NULL,
    signature BLOB NOT NULL
) STRICT;
CREATE TABLE audit_checkpoints (
    seq       INTEGER PRIMARY KEY,
    hash      BLOB NOT NULL,
    time      TEXT NOT NULL,
    signature BLOB NOT NULL
) STRICT;
";

/// The tables that the second version of a log has besides.
pub const TABLES_2: &[&str] = &[counter::TABLE, segment::TABLE];

/// What the third version changes in them.
pub const TABLES_3: &str = segment::COLUMNS_3;

/// The same tables in PostgreSQL, all of them.
pub const POSTGRES_TABLES: &str = include_str!("postgres.sql");

/// Records that one statement inserts, and then those that are left: there are as many statements, so that each stays
/// prepared.
const BATCHES: [usize; 3] = [64, 8, 1];

/// How a transaction is begun that appends to a log: those of several hosts one after the other. Whoever is told that
/// another one was faster, and begins again, would be so by each host that is nearer to the server or has more to record.
pub const APPENDING: Mode = Mode::InTurn("audit_head");

/// Records that are read at a time: not every engine gives the rows of an answer one by one.
const PAGE: usize = 1000;

/// What the log in the tables of `db` is, without the key that signs it.
pub(super) fn exported(db: &Connection, name: &str) -> Result<ExportedLog, AuditError> {
    let sql = "SELECT log_id, created, public_key FROM audit_log";
    let found = db.first(sql, &[], |row| {
        let id: String = row.get(0)?;
        Ok::<_, AuditError>((id, row.get(1)?, row.get(2)?))
    })?;
    let (id, created, public_key) =
        found.ok_or_else(|| AuditError::tampered("its first row is missing"))?;
    let log = Uuid::parse_str(&id).map_err(|_| AuditError::tampered("its id is none"))?;
    Ok(ExportedLog::new(name, log, created, PublicKey(public_key)))
}

/// Has whoever else appends to the log wait for the end of the transaction that is under way.
///
/// In SQLite they wait since it has begun, and those that were begun as [`APPENDING`] do so everywhere. Else PostgreSQL
/// lets several transactions go on at once, and that they are serializable does not suffice: all would find the same end
/// of the log, and those that come late would be told that the number of their record is taken before they are told that
/// somebody else was faster, which looks like tampering. So the row of the head is locked before the log is looked at (by
/// a change of nothing, since SQLite knows no `FOR UPDATE`). Whoever has waited for one that has appended fails here, is
/// run again, and has signed nothing in vain.
pub(super) fn lock(db: &Connection) -> Result<(), AuditError> {
    db.execute("UPDATE audit_head SET seq = seq", &[])?;
    Ok(())
}

/// Puts records behind the end, each with its hash.
pub(super) fn insert(db: &Connection, records: &[(Entry, Hash)]) -> Result<(), AuditError> {
    let mut rest = records;
    for size in BATCHES {
        while let Some((batch, behind)) = rest.split_at_checked(size) {
            insert_batch(db, batch)?;
            rest = behind;
        }
    }
    Ok(())
}

fn insert_batch(db: &Connection, batch: &[(Entry, Hash)]) -> Result<(), AuditError> {
    let row = format!("(?, ?, ?, {})", event::PARAMETERS);
    let sql = format!(
        "INSERT INTO audit (seq, time, hash, {}) VALUES {}",
        event::COLUMNS,
        vec![row; batch.len()].join(", ")
    );
    let mut values = Vec::with_capacity(batch.len() * (3 + event::COUNT));
    for (entry, hash) in batch {
        let seq = Value::Integer(number(entry.seq)?);
        values.extend([seq, entry.time.to_value(), hash.to_value()]);
        values.extend(entry.event.values());
    }
    match db.execute(&sql, &values) {
        Err(e) if e.kind() == ErrorKind::Unique => Err(AuditError::tampered(taken(batch))),
        other => Ok(other.map(drop)?),
    }
}

/// What is wrong when one of these records cannot be put behind the end.
fn taken(batch: &[(Entry, Hash)]) -> String {
    match batch {
        [(only, _)] => format!("there is a record {} behind its end", only.seq),
        [(first, _), .., (last, _)] => format!(
            "there is a record between {} and {} behind its end",
            first.seq, last.seq
        ),
        [] => "there is a record behind its end".into(),
    }
}

/// Visits the stored records behind number `after`, in order.
pub(super) fn stored<E: From<AuditError>>(
    db: &Connection,
    after: u64,
    visit: impl FnMut(StoredEntry) -> Result<(), E>,
) -> Result<(), E> {
    stored_until(db, after, i64::MAX.unsigned_abs(), visit)
}

/// Visits the stored records behind number `after`, up to number `last`, in order, as they are at one moment.
pub(super) fn stored_until<E: From<AuditError>>(
    db: &Connection,
    after: u64,
    last: u64,
    visit: impl FnMut(StoredEntry) -> Result<(), E>,
) -> Result<(), E> {
    let moment = db.moment().map_err(AuditError::from)?;
    stored_until_now(&moment, after, last, visit)
}

/// As [`stored_until`], as they are when each is read.
pub(super) fn stored_until_now<E: From<AuditError>>(
    db: &Connection,
    mut after: u64,
    last: u64,
    mut visit: impl FnMut(StoredEntry) -> Result<(), E>,
) -> Result<(), E> {
    loop {
        let page = page(db, after, last)?;
        let is_last = page.len() < PAGE;
        for stored in page {
            after = stored.entry.seq;
            visit(stored)?;
        }
        if is_last {
            return Ok(());
        }
    }
}

/// The stored records behind number `after`, up to number `last`, in order: as many of them as are read at a time.
pub(super) fn page(db: &Connection, after: u64, last: u64) -> Result<Vec<StoredEntry>, AuditError> {
    let sql = format!(
        "SELECT seq, time, hash, {} FROM audit WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT {PAGE}",
        event::COLUMNS
    );
    db.select(&sql, params![number(after)?, number(last)?], read_entry)
}

/// The number of the last record that is stored, also behind the head, where there should be none; 0 when there is none.
pub(super) fn last_stored(db: &Connection) -> Result<u64, AuditError> {
    let last: Option<i64> = db.the_value("SELECT max(seq) FROM audit", &[])?;
    Ok(last.map_or(0, |last| last.max(0).cast_unsigned()))
}

fn read_entry(row: &Row) -> Result<StoredEntry, AuditError> {
    Ok(StoredEntry {
        entry: Entry {
            seq: seq(row)?,
            time: row.get(1)?,
            event: Event::read(row, 3)?,
        },
        hash: row.get(2)?,
    })
}

/// The head, with what it has to cover of the counters. Head and counters are of one moment only within a transaction.
pub(super) fn read_head(db: &Connection, log: LogId) -> Result<Option<Head>, AuditError> {
    Ok(read_head_with_counters(db, log)?.map(|(head, _)| head))
}

/// As [`read_head`], with the counters themselves.
pub(super) fn read_head_with_counters(
    db: &Connection,
    log: LogId,
) -> Result<Option<(Head, Vec<Counter>)>, AuditError> {
    let sql = "SELECT seq, hash, time, signature FROM audit_head";
    let Some(head) = db.first(sql, &[], signed)? else {
        return Ok(None);
    };
    let open = counter::read(db)?;
    let counters = counter::digest(log, &open);
    Ok(Some((Head { counters, ..head }, open)))
}

/// The number of the last record of the log in a database, 0 of an empty one. Its signature is not looked at.
///
/// # Errors
/// [`AuditError`].
pub fn last_record(db: &Connection) -> Result<u64, AuditError> {
    let last: Option<i64> = db.value("SELECT seq FROM audit_head", &[])?;
    Ok(last.map_or(0, i64::cast_unsigned))
}

/// Visits the records behind number `after`, in order, as they are stored.
///
/// # Errors
/// [`AuditError`], or what `visit` returns.
pub fn visit_records<E: From<AuditError>>(
    db: &Connection,
    after: u64,
    mut visit: impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    stored(db, after, |stored| visit(stored.entry))
}

pub(super) fn read_checkpoints(db: &Connection) -> Result<Vec<Head>, AuditError> {
    let sql = "SELECT seq, hash, time, signature FROM audit_checkpoints ORDER BY seq";
    db.select(sql, &[], signed)
}

/// A head or checkpoint; one whose hash has a wrong length cannot have been written here.
fn signed(row: &Row) -> Result<Head, AuditError> {
    let hash: Vec<u8> = row.get(1)?;
    let Ok(hash) = hash.try_into() else {
        return Err(AuditError::tampered("a signed hash is none"));
    };
    Ok(Head {
        seq: seq(row)?,
        hash,
        counters: None,
        time: row.get(2)?,
        signature: row.get(3)?,
    })
}

pub(super) fn write_head(db: &Connection, head: &Head) -> Result<(), AuditError> {
    let sql = "INSERT INTO audit_head (id, seq, hash, time, signature) VALUES (1, ?, ?, ?, ?) \
               ON CONFLICT (id) DO UPDATE SET seq = excluded.seq, hash = excluded.hash, \
               time = excluded.time, signature = excluded.signature";
    db.execute(sql, &signed_values(head)?)?;
    Ok(())
}

pub(super) fn write_checkpoint(db: &Connection, checkpoint: &Head) -> Result<(), AuditError> {
    let sql = "INSERT INTO audit_checkpoints VALUES (?, ?, ?, ?)";
    db.execute(sql, &signed_values(checkpoint)?)?;
    Ok(())
}

/// What [`signed`] reads.
fn signed_values(head: &Head) -> Result<[Value<'_>; 4], AuditError> {
    Ok([
        Value::Integer(number(head.seq)?),
        head.hash.to_value(),
        head.time.to_value(),
        head.signature.as_slice().to_value(),
    ])
}

/// A negative number, which nothing here writes, becomes one that no record can have.
fn seq(row: &Row) -> Result<u64, AuditError> {
    Ok(row.get::<i64>(0)?.cast_unsigned())
}
