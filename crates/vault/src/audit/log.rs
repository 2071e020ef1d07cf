//! The log of an installation: in a database of its own, or beside the catalog on a server.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::AuditError;
use super::archive::{self, Archived};
use super::chain::Chain;
use super::essential::is_essential;
use super::record::{AuditRecord, Counted};
use super::seen::Seen;
use super::space::Reserve;
use super::store::{APPENDING, TABLES, TABLES_2, TABLES_3};
use super::verifier::Finding;
use database::sqlite::{self, Schema};
use database::{Connection, Database};
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

pub(super) const SCHEMA: Schema = Schema {
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

/// A log, with the key of its signing key in a file. Several processes may append to it at the same time, and several
/// hosts to one that is on a server.
pub struct AuditLog {
    db: Mutex<Database>,
    chain: Chain,
    seen: Seen,
    reserve: Reserve,
    host: Option<String>,
}

/// What a host has of a log besides its database.
struct OnHost {
    /// The file with the key that the signing key is sealed under. How far the log was seen to reach is in one beside it.
    key: PathBuf,
    /// The room for a database that is in a file here.
    reserve: Reserve,
    /// What tells the host from the others that share the log.
    name: Option<String>,
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
        let db = sqlite::open(path, &SCHEMA)?.into();
        let on_host = OnHost {
            key: path.with_extension("key"),
            reserve,
            name: None,
        };
        Self::open_in(db, on_host)
    }

    /// Opens the log in a database that hosts share; the first call makes it. The key of its signing key is in the file
    /// `key` of each host, which the first makes and the others are given. How far the log was seen to reach is in a file
    /// beside it. `host` is another name for each of them and stays the same: by it a host knows the changes that its own
    /// processes died over.
    ///
    /// # Errors
    /// As [`AuditLog::open`].
    pub fn open_shared(db: Database, key: &Path, host: &str) -> Result<Self, AuditError> {
        let on_host = OnHost {
            key: key.into(),
            reserve: Reserve::none(),
            name: Some(host.into()),
        };
        Self::open_in(db, on_host)
    }

    fn open_in(db: Database, on_host: OnHost) -> Result<Self, AuditError> {
        let OnHost { key, reserve, name } = on_host;
        let chain = match is_made(&db)? {
            true => load(&db, &key)?,
            false => make(&db, &key)?,
        };
        let log = Self {
            seen: Seen::open(&chain, &db, &key, INSTALLATION)?,
            db: Mutex::new(db),
            chain,
            reserve,
            host: name,
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
    pub fn open_database(path: &Path) -> Result<Database, AuditError> {
        Ok(sqlite::open(path, &SCHEMA)?.into())
    }

    /// As [`open_database`](Self::open_database) for who only looks: it stays as it is, of an older version
    /// too.
    ///
    /// # Errors
    /// [`AuditError::Open`].
    pub fn look_at_database(path: &Path) -> Result<Database, AuditError> {
        Ok(sqlite::open_as_it_is(path, &SCHEMA)?.into())
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

    /// Writes to the log in one transaction, for that operation. `write` may run again.
    pub(super) fn write_as(
        &self,
        operation: &str,
        is_essential: bool,
        write: impl Fn(&Chain, &Connection) -> Result<(), AuditError>,
    ) -> Result<(), AuditError> {
        let span = Span::begin("append audit record");
        span.set("sealdisk.audit.operation", operation.to_owned());
        let written = self.write_traced(is_essential, write);
        span.came_to(written, |error| error.code())
    }

    fn write_traced(
        &self,
        is_essential: bool,
        write: impl Fn(&Chain, &Connection) -> Result<(), AuditError>,
    ) -> Result<(), AuditError> {
        let db = self.db();
        match is_essential {
            true => self.reserve.make_room(&db),
            false if self.reserve.is_spent() => return Err(AuditError::Full),
            false => {}
        }
        db.transaction(APPENDING, |db| write(&self.chain, db))?;
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
        let records = [Counted {
            record,
            window: Some(window),
        }];
        let db = self.db();
        // It takes little room however often it happens, so that it is not refused for want of that.
        self.reserve.make_room(&db);
        db.transaction(APPENDING, |db| self.chain.append_counted(db, &records, now))?;
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
        let db = self.db();
        if !self.chain.has_overdue(&db, now)? {
            return Ok(());
        }
        db.transaction(APPENDING, |db| self.chain.append_counted(db, &[], now))
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

    /// What tells this host from the others that share the log; `None` where none do.
    pub(super) fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    pub(super) fn db(&self) -> MutexGuard<'_, Database> {
        let begun = Instant::now();
        // A panic elsewhere rolled its transaction back; the connection itself is intact.
        let db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        db.waited_since(begun);
        db
    }
}

/// Whether there is a log in the database.
fn is_made(db: &Connection) -> Result<bool, AuditError> {
    Ok(db.the_value("SELECT count(*) FROM audit_log", &[])?)
}

/// The name that a key has until its log is there.
fn new_name(key: &Path) -> PathBuf {
    key.with_extension("key.new")
}

/// The log that is there.
fn load(db: &Connection, key: &Path) -> Result<Chain, AuditError> {
    let missing = || AuditError::tampered("its first row is missing");
    let new = new_name(key);
    // Whoever has made the log may have died before its key got its name. On a host that was not the first of those that
    // share the log, what has that name is the key of no log, and would hide that the log's own is missing.
    if !key.exists()
        && let Ok(sealing) = SealingKey::load(&new, FileGuard::Mode)
        && let Ok(chain) = Chain::load(db, &sealing)
    {
        take_name(&new, key)?;
        return chain.ok_or_else(missing);
    }
    let sealing = SealingKey::load(key, FileGuard::Mode).map_err(AuditError::Key)?;
    Chain::load(db, &sealing)?.ok_or_else(missing)
}

/// Makes the log, and its key, unless somebody else is faster.
fn make(db: &Database, key: &Path) -> Result<Chain, AuditError> {
    let new = new_name(key);
    // Of the processes of a host one at a time makes a key: each removes what is left of another's. Of hosts that share
    // the database one makes the log, and what the others do is run again.
    let _alone = key.parent().map(archive::lock).transpose()?;
    let chain = db.transaction(APPENDING, |db| {
        if is_made(db)? {
            return load(db, key);
        }
        if key.exists() {
            let what = format!("the log of the key {} was removed", key.display());
            return Err(AuditError::tampered(what));
        }
        Chain::create(db, &new_key(&new)?, OffsetDateTime::now_utc())
    })?;
    take_name(&new, key)?;
    Ok(chain)
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
