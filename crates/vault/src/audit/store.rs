//! The rows of a log in its database.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params, params_from_iter};
use uuid::Uuid;

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

/// What the log in the tables of `db` is, without the key that signs it.
pub(super) fn exported(db: &Connection, name: &str) -> Result<ExportedLog, AuditError> {
    let sql = "SELECT log_id, created, public_key FROM audit_log";
    let columns = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?));
    let found = db.query_row(sql, [], columns).optional()?;
    let (id, created, public_key) =
        found.ok_or_else(|| AuditError::tampered("its first row is missing"))?;
    let log = Uuid::parse_str(&id).map_err(|_| AuditError::tampered("its id is none"))?;
    Ok(ExportedLog::new(name, log, created, PublicKey(public_key)))
}

pub(super) fn insert(db: &Connection, entry: &Entry, hash: &Hash) -> Result<(), AuditError> {
    let sql = format!(
        "INSERT INTO audit (seq, time, hash, {}) VALUES (?, ?, ?, {})",
        event::COLUMNS,
        event::PARAMETERS
    );
    let (seq, hash) = (number(entry.seq)?, hash.as_slice());
    let own: [&dyn ToSql; 3] = [&seq, &entry.time, &hash];
    let parameters = own.into_iter().chain(entry.event.parameters());
    let inserted = db
        .prepare_cached(&sql)?
        .execute(params_from_iter(parameters));
    match inserted {
        Err(e) if is_taken(&e) => Err(AuditError::tampered(format!(
            "there is a record {} behind its end",
            entry.seq
        ))),
        other => Ok(other.map(drop)?),
    }
}

fn is_taken(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|e| e.extended_code);
    code == Some(rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY)
}

/// Visits the stored records behind number `after`, in order.
pub(super) fn stored<E: From<AuditError>>(
    db: &Connection,
    after: u64,
    visit: impl FnMut(StoredEntry) -> Result<(), E>,
) -> Result<(), E> {
    stored_until(db, after, i64::MAX.unsigned_abs(), visit)
}

/// Visits the stored records behind number `after`, up to number `last`, in order.
pub(super) fn stored_until<E: From<AuditError>>(
    db: &Connection,
    after: u64,
    last: u64,
    mut visit: impl FnMut(StoredEntry) -> Result<(), E>,
) -> Result<(), E> {
    let sqlite = |e: rusqlite::Error| E::from(AuditError::Sqlite(e));
    let sql = format!(
        "SELECT seq, time, hash, {} FROM audit WHERE seq > ? AND seq <= ? ORDER BY seq",
        event::COLUMNS
    );
    let mut statement = db.prepare_cached(&sql).map_err(sqlite)?;
    let mut rows = statement
        .query([number(after)?, number(last)?])
        .map_err(sqlite)?;
    while let Some(row) = rows.next().map_err(sqlite)? {
        visit(read_entry(row).map_err(sqlite)?)?;
    }
    Ok(())
}

fn read_entry(row: &Row<'_>) -> rusqlite::Result<StoredEntry> {
    Ok(StoredEntry {
        entry: Entry {
            seq: seq(row)?,
            time: row.get(1)?,
            event: Event::read(row, 3)?,
        },
        hash: row.get(2)?,
    })
}

/// The head, with what it has to cover of the counters.
pub(super) fn read_head(db: &Connection, log: LogId) -> Result<Option<Head>, AuditError> {
    let sql = "SELECT seq, hash, time, signature FROM audit_head";
    let head = db.prepare_cached(sql)?.query_row([], signed).optional()?;
    let Some(head) = head.transpose()? else {
        return Ok(None);
    };
    let counters = counter::digest(log, &counter::read(db)?);
    Ok(Some(Head { counters, ..head }))
}

/// The number of the last record of the log in a database, 0 of an empty one. Its signature is not looked at.
///
/// # Errors
/// [`AuditError`].
pub fn last_record(db: &Connection) -> Result<u64, AuditError> {
    let sql = "SELECT seq FROM audit_head";
    let last: Option<i64> = db
        .prepare_cached(sql)?
        .query_row([], |row| row.get(0))
        .optional()?;
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
    let mut statement = db.prepare(sql)?;
    let rows = statement.query_map([], signed)?;
    rows.map(|row| row?).collect()
}

/// A head or checkpoint; one whose hash has a wrong length cannot have been written here.
fn signed(row: &Row<'_>) -> rusqlite::Result<Result<Head, AuditError>> {
    let hash: Vec<u8> = row.get(1)?;
    let Ok(hash) = hash.try_into() else {
        return Ok(Err(AuditError::tampered("a signed hash is none")));
    };
    Ok(Ok(Head {
        seq: seq(row)?,
        hash,
        counters: None,
        time: row.get(2)?,
        signature: row.get(3)?,
    }))
}

pub(super) fn write_head(db: &Connection, head: &Head) -> Result<(), AuditError> {
    let sql = "INSERT OR REPLACE INTO audit_head (id, seq, hash, time, signature) \
               VALUES (1, ?, ?, ?, ?)";
    db.prepare_cached(sql)?.execute(params![
        number(head.seq)?,
        head.hash.as_slice(),
        head.time,
        head.signature
    ])?;
    Ok(())
}

pub(super) fn write_checkpoint(db: &Connection, checkpoint: &Head) -> Result<(), AuditError> {
    db.prepare_cached("INSERT INTO audit_checkpoints VALUES (?, ?, ?, ?)")?
        .execute(params![
            number(checkpoint.seq)?,
            checkpoint.hash.as_slice(),
            checkpoint.time,
            checkpoint.signature
        ])?;
    Ok(())
}

/// A negative number, which nothing here writes, becomes one that no record can have.
fn seq(row: &Row<'_>) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(0)?.cast_unsigned())
}
