//! A log in a database of its own.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};
use time::OffsetDateTime;

use super::AuditError;
use super::archive::Archived;
use super::chain::Chain;
use super::essential::is_essential;
use super::record::{AuditRecord, Counted};
use super::seen::Seen;
use super::space::Reserve;
use super::store::{TABLES, TABLES_2, TABLES_3};
use super::verifier::Finding;
use database::sqlite::{self, Schema};
use keys::{FileGuard, SealingKey};
use traces::Span;

/// The table of changes whose outcome is not recorded yet. `owner` tells their process from every
/// other one since the world began: boot, process id, and when it was started.
const INTENTS: &str = "
CREATE TABLE audit_intents (
    id        TEXT PRIMARY KEY,
    owner     TEXT NOT NULL,
    caller    TEXT NOT NULL,
    origin    TEXT NOT NULL,
    operation TEXT NOT NULL,
    key       TEXT,
    version   TEXT,
    disk      TEXT,
    detail    TEXT
) STRICT;
";

const SCHEMA: Schema = Schema {
    what: "audit log",
    application_id: 0x5EA1_0A0D,
    steps: &[
        |db| db.execute_batch(TABLES),
        |db| {
            db.execute_batch(INTENTS)?;
            TABLES_2
                .iter()
                .try_for_each(|table| db.execute_batch(table))
        },
        |db| db.execute_batch(TABLES_3),
    ],
};

/// What exports call the log of an installation.
const INSTALLATION: &str = "installation";

/// A log in a file, with the key of its signing key in another beside it. Several processes may
/// append to it at the same time.
pub struct AuditLog {
    db: Mutex<Connection>,
    chain: Chain,
    seen: Seen,
    reserve: Reserve,
}

impl AuditLog {
    /// Opens the log `path`; the first call makes it, and the key file that has `.key` in the place
    /// of the log's suffix.
    ///
    /// The key file gets its name once the log is there: a key without a log is what is left when
    /// somebody has removed the log.
    ///
    /// # Errors
    /// [`AuditError`], also for a key file that is missing or that others can read, and for a key
    /// file without a log.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let reserve = Reserve::of(path);
        reserve.release_if_full();
        let mut db = sqlite::open(path, &SCHEMA)?;
        let (key_path, new_path) = (path.with_extension("key"), path.with_extension("key.new"));
        // Under the write lock, so that of two processes that find no log one makes it.
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let made: bool =
            transaction.query_row("SELECT count(*) FROM audit_log", [], |row| row.get(0))?;
        let chain = if made {
            take_name(&new_path, &key_path)?;
            let sealing = SealingKey::load(&key_path, FileGuard::Mode).map_err(AuditError::Key)?;
            Chain::load(&transaction, &sealing)?
        } else if key_path.exists() {
            return Err(AuditError::tampered(format!(
                "the log {} was removed, its key is there",
                path.display()
            )));
        } else {
            let sealing = new_key(&new_path)?;
            Some(Chain::create(
                &transaction,
                &sealing,
                OffsetDateTime::now_utc(),
            )?)
        };
        transaction.commit()?;
        take_name(&new_path, &key_path)?;
        let chain = chain.ok_or_else(|| AuditError::tampered("its first row is missing"))?;
        let log = Self {
            seen: Seen::open(&chain, &db, path, INSTALLATION)?,
            db: Mutex::new(db),
            chain,
            reserve,
        };
        log.reserve.keep();
        log.settle(OffsetDateTime::now_utc())?;
        log.note_unfinished()?;
        Ok(log)
    }

    /// The database of the log `path` without its key, to be verified.
    ///
    /// # Errors
    /// [`AuditError::Open`].
    pub fn open_database(path: &Path) -> Result<Connection, AuditError> {
        Ok(sqlite::open(path, &SCHEMA)?)
    }

    /// As [`open_database`](Self::open_database) for who only looks: it stays as it is, of an older version
    /// too.
    ///
    /// # Errors
    /// [`AuditError::Open`].
    pub fn look_at_database(path: &Path) -> Result<Connection, AuditError> {
        Ok(sqlite::open_as_it_is(path, &SCHEMA)?)
    }

    /// Appends a record; it is durable when this returns.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn append(&self, record: &AuditRecord) -> Result<(), AuditError> {
        let operation = &record.event.operation;
        self.write_as(operation, is_essential(operation), |chain, db| {
            chain.append(db, std::slice::from_ref(record))
        })
    }

    /// As [`AuditLog::append`], of what was done already: no refusal undoes it, so it is recorded though the file system
    /// is full.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn append_done(&self, record: &AuditRecord) -> Result<(), AuditError> {
        self.write_as(&record.event.operation, true, |chain, db| {
            chain.append(db, std::slice::from_ref(record))
        })
    }

    /// Writes to the log in one transaction, for that operation.
    pub(super) fn write_as(
        &self,
        operation: &str,
        is_essential: bool,
        write: impl FnOnce(&Chain, &Connection) -> Result<(), AuditError>,
    ) -> Result<(), AuditError> {
        let span = Span::begin("append audit record");
        span.set("sealdisk.audit.operation", operation.to_owned());
        let written = self.write_traced(is_essential, write);
        span.came_to(written, |error| error.code())
    }

    fn write_traced(
        &self,
        is_essential: bool,
        write: impl FnOnce(&Chain, &Connection) -> Result<(), AuditError>,
    ) -> Result<(), AuditError> {
        let mut db = self.db();
        match is_essential {
            true => self.reserve.make_room(&db),
            false if self.reserve.is_spent() => return Err(AuditError::Full),
            false => {}
        }
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        write(&self.chain, &transaction)?;
        transaction.commit()?;
        self.seen.note(&self.chain, &db);
        Ok(())
    }

    pub(super) fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Appends a record of which others of its kind are counted in the time `window` after it.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn append_counted(&self, record: AuditRecord, window: Duration) -> Result<(), AuditError> {
        let now = record.time;
        let record = Counted {
            record,
            window: Some(window),
        };
        let mut db = self.db();
        // It takes little room however often it happens, so that it is not refused for want of that.
        self.reserve.make_room(&db);
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.chain.append_counted(&transaction, &[record], now)?;
        transaction.commit()?;
        self.seen.note(&self.chain, &db);
        Ok(())
    }

    /// What shows that the log is not the one that was seen last.
    pub fn older(&self) -> Option<&Finding> {
        self.seen.finding()
    }

    /// Records the counters whose window is over.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn settle(&self, now: OffsetDateTime) -> Result<(), AuditError> {
        let mut db = self.db();
        if !self.chain.has_overdue(&db, now)? {
            return Ok(());
        }
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.chain.append_counted(&transaction, &[], now)?;
        Ok(transaction.commit()?)
    }

    /// Writes the records from before `before` into a file in `dir`, and removes them from the log;
    /// see [`Chain::archive`].
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn archive(
        &self,
        name: &str,
        dir: &Path,
        before: OffsetDateTime,
        record: AuditRecord,
    ) -> Result<Option<Archived>, AuditError> {
        self.chain.archive(&self.db(), name, dir, before, record)
    }

    /// The room that the log has in reserve, in bytes.
    pub fn reserve_size(&self) -> u64 {
        self.reserve.size()
    }

    /// Reads the log with its chain and its database.
    pub fn read<T>(&self, read: impl FnOnce(&Chain, &Connection) -> T) -> T {
        read(&self.chain, &self.db())
    }

    pub(super) fn db(&self) -> MutexGuard<'_, Connection> {
        // A panic elsewhere rolled its transaction back; the connection itself is intact.
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the key of a log that is about to be made; one that is left from a process that died over
/// that is of no use to anybody.
fn new_key(path: &Path) -> Result<SealingKey, AuditError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(io_error("remove", path, e)),
        _ => {}
    }
    SealingKey::create(path).map_err(AuditError::Key)
}

/// Gives the key of a log that is there its name, unless it has it.
fn take_name(new: &Path, path: &Path) -> Result<(), AuditError> {
    if path.exists() {
        return Ok(());
    }
    match std::fs::rename(new, path) {
        // Another process was faster, or the key is lost: reading it tells.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| io_error("rename", new, e))?,
    }
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    std::fs::File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| io_error("sync", parent, e))
}

fn io_error(call: &'static str, path: &Path, source: std::io::Error) -> AuditError {
    AuditError::Io {
        call,
        path: path.into(),
        source,
    }
}
