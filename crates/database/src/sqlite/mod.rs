//! Opening an SQLite database that belongs to this program: durable settings, and a refusal of
//! files that something else, or a newer version, has made.

mod engine;
mod space;

use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior,
};

pub use space::is_full;

use crate::OpenError;

/// How long a statement waits for another process's transaction, which are all short.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// Statements that a connection keeps compiled: more than any one of this program uses. One less, and
/// statements that are used in turn are each compiled every time, which costs more than running them.
const STATEMENTS: usize = 128;

/// Brings a database from one version of its schema to the next. Foreign keys are not enforced
/// meanwhile, so that a table can be replaced; that none is violated is checked afterwards.
pub type Step = fn(&Transaction<'_>) -> rusqlite::Result<()>;

/// What a database of this program looks like from outside.
pub struct Schema {
    /// What the database is, for messages: "catalog", "key vault".
    pub what: &'static str,
    /// SQLite's `application_id` of such files.
    pub application_id: i32,
    /// The first step makes an empty database one of version 1, the second brings one of version 1
    /// to version 2, and so on. SQLite's `user_version` is the number of steps that were taken, so
    /// a step that was released never changes.
    pub steps: &'static [Step],
}

impl Schema {
    /// The version that this program reads and writes.
    fn version(&self) -> i32 {
        i32::try_from(self.steps.len()).unwrap_or(i32::MAX)
    }
}

/// Opens the database at `path`, making it when there is none, with WAL journaling, a sync at every
/// commit (`synchronous=FULL`) and foreign keys enforced, and brings one of an older version up to
/// date in one transaction. The file is created with mode 0600, which SQLite copies to its `-wal`
/// and `-shm` companions.
///
/// # Errors
/// [`OpenError`]. A foreign or newer file is not written to.
pub fn open(path: &Path, schema: &Schema) -> Result<Connection, OpenError> {
    let what = schema.what;
    create_private(path).map_err(|source| OpenError::Create {
        path: path.into(),
        what,
        source,
    })?;
    // Looked at before anything is written, so that a file of someone else stays as it is.
    let (db, found) = open_to_look(path, schema)?;
    made_ready(db, found, path, schema)
}

/// As [`open`], of a database that somebody else has made: `None` while there is nothing in it yet.
///
/// # Errors
/// As [`open`], and when there is no file.
pub fn open_made(path: &Path, schema: &Schema) -> Result<Option<Connection>, OpenError> {
    let (db, found) = open_to_look(path, schema)?;
    match found {
        0 => Ok(None),
        _ => made_ready(db, found, path, schema).map(Some),
    }
}

/// A database that was looked at and is of the version `found`, with its settings and up to date.
fn made_ready(
    mut db: Connection,
    found: i32,
    path: &Path,
    schema: &Schema,
) -> Result<Connection, OpenError> {
    let sqlite = |source| failed(path, schema, source);
    settings(&db).map_err(sqlite)?;
    if found < schema.version() {
        update(&mut db, path, schema, sqlite)?;
    }
    db.pragma_update(None, "foreign_keys", true)
        .map_err(sqlite)?;
    Ok(db)
}

/// Whether this program can open the database at `path`. Nothing is written to it, nor brought up to date.
///
/// # Errors
/// [`OpenError`]: why not.
pub fn look(path: &Path, schema: &Schema) -> Result<(), OpenError> {
    open_to_look(path, schema).map(drop)
}

/// Opens the database at `path`, which must be there, for who only looks: nothing can be written, and
/// one of an older version is not brought up to date. A process of the version before may be using it,
/// which could not open it any more; whether something can be read of it shows when it is.
///
/// # Errors
/// As [`look`].
pub fn open_as_it_is(path: &Path, schema: &Schema) -> Result<Connection, OpenError> {
    let (db, _) = open_to_look(path, schema)?;
    db.pragma_update(None, "query_only", true)
        .map_err(|source| failed(path, schema, source))?;
    Ok(db)
}

/// Opens the database, with its version.
fn open_to_look(path: &Path, schema: &Schema) -> Result<(Connection, i32), OpenError> {
    let sqlite = |source| failed(path, schema, source);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut db = Connection::open_with_flags(canonical(path), flags).map_err(sqlite)?;
    db.busy_timeout(BUSY_TIMEOUT).map_err(sqlite)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    let snapshot = db.transaction().map_err(sqlite)?;
    let found = version(&snapshot, path, schema, sqlite)?;
    snapshot.commit().map_err(sqlite)?;
    Ok((db, found))
}

/// The file, for messages.
fn place(path: &Path) -> String {
    path.display().to_string()
}

/// What SQLite says of the database.
fn failed(path: &Path, schema: &Schema, source: rusqlite::Error) -> OpenError {
    let (place, what) = (place(path), schema.what);
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::Foreign { place, what },
        _ => OpenError::Engine {
            place,
            what,
            source: engine::failed(&source),
        },
    }
}

/// Takes the steps that are missing, all or none of them.
fn update(
    db: &mut Connection,
    path: &Path,
    schema: &Schema,
    sqlite: impl Fn(rusqlite::Error) -> OpenError + Copy,
) -> Result<(), OpenError> {
    // SQLite ignores this setting inside a transaction.
    db.pragma_update(None, "foreign_keys", false)
        .map_err(sqlite)?;
    let transaction = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(sqlite)?;
    // Another process may have taken the steps between the look and the lock.
    let found = version(&transaction, path, schema, sqlite)?;
    let missing = usize::try_from(found).map_or(&[][..], |taken| &schema.steps[taken..]);
    for step in missing {
        step(&transaction).map_err(sqlite)?;
    }
    // A step that breaks a reference is a mistake of this program; nothing of it is kept.
    let violated = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
    let violation = transaction
        .query_row("PRAGMA foreign_key_check", [], violated)
        .optional()
        .map_err(sqlite)?;
    if let Some(table) = violation {
        return Err(OpenError::Reference {
            place: place(path),
            what: schema.what,
            table,
        });
    }
    transaction
        .pragma_update(None, "application_id", schema.application_id)
        .and_then(|()| transaction.pragma_update(None, "user_version", schema.version()))
        .and_then(|()| transaction.commit())
        .map_err(sqlite)
}

/// Makes an empty 0600 file unless one is there, and makes its directory entry durable.
fn create_private(path: &Path) -> io::Result<()> {
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match made {
        Ok(file) => file.sync_all()?,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(e) => return Err(e),
    }
    match path.parent() {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// `SQLITE_OPEN_NOFOLLOW` refuses a symbolic link anywhere in the path; only one in the place of
/// the database itself is meant to be refused.
fn canonical(path: &Path) -> PathBuf {
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path.into(),
    }
}

/// The version of the database, 0 when it is empty; an error when it is not of this schema, or
/// newer. In a transaction, so that all that is looked at is of one moment.
fn version(
    db: &Transaction<'_>,
    path: &Path,
    schema: &Schema,
    sqlite: impl Fn(rusqlite::Error) -> OpenError,
) -> Result<i32, OpenError> {
    let number = |sql| db.query_row(sql, [], |row| row.get::<_, i32>(0));
    let objects = number("SELECT count(*) FROM sqlite_schema").map_err(&sqlite)?;
    let application_id = number("PRAGMA application_id").map_err(&sqlite)?;
    let version = number("PRAGMA user_version").map_err(&sqlite)?;
    if application_id == 0 && version == 0 && objects == 0 {
        return Ok(0);
    }
    if application_id != schema.application_id {
        return Err(OpenError::Foreign {
            place: place(path),
            what: schema.what,
        });
    }
    if !(1..=schema.version()).contains(&version) {
        return Err(OpenError::Version {
            place: place(path),
            what: schema.what,
            found: version,
            known: schema.version(),
        });
    }
    Ok(version)
}

fn settings(db: &Connection) -> rusqlite::Result<()> {
    // SQLite does not call its busy handler for every lock of the switch to WAL, so two processes
    // that make the same new database retry here.
    let deadline = std::time::Instant::now() + BUSY_TIMEOUT;
    loop {
        match db.pragma_update(None, "journal_mode", "WAL") {
            Err(e)
                if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && std::time::Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => break other?,
        }
    }
    db.pragma_update(None, "synchronous", "FULL")?;
    // What was deleted or replaced is overwritten: it may have been sealed under a key that somebody
    // has got hold of since.
    db.pragma_update(None, "secure_delete", true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Step = |db| db.execute_batch("CREATE TABLE t (a INTEGER) STRICT;");
    const SECOND: Step = |db| db.execute_batch("ALTER TABLE t ADD b INTEGER DEFAULT 3;");
    const SCHEMA: Schema = Schema {
        what: "test database",
        application_id: 42,
        steps: &[FIRST],
    };
    const NEWER: Schema = Schema {
        steps: &[FIRST, SECOND],
        ..SCHEMA
    };

    #[test]
    fn is_durable_private_and_reopens() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.db");
        let db = open(&path, &SCHEMA).unwrap();
        let get = |sql| db.query_row(sql, [], |r| r.get::<_, String>(0)).unwrap();
        assert_eq!(get("SELECT journal_mode FROM pragma_journal_mode"), "wal");
        let sync: i32 = db
            .query_row("PRAGMA synchronous", [], |r| r.get(0))
            .unwrap();
        assert_eq!(sync, 2, "FULL");
        db.execute("INSERT INTO t VALUES (7)", []).unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        drop(db);
        let db = open(&path, &SCHEMA).unwrap();
        let a: i32 = db.query_row("SELECT a FROM t", [], |r| r.get(0)).unwrap();
        assert_eq!(a, 7);
    }

    #[test]
    fn a_newer_database_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.db");
        drop(open(&path, &NEWER).unwrap());
        let before = std::fs::read(&path).unwrap();
        let error = open(&path, &SCHEMA).unwrap_err();
        assert!(matches!(
            error,
            OpenError::Version {
                found: 2,
                known: 1,
                ..
            }
        ));
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn an_older_database_is_brought_up_to_date_once_with_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.db");
        let db = open(&path, &SCHEMA).unwrap();
        db.execute("INSERT INTO t VALUES (7)", []).unwrap();
        drop(db);
        for _ in 0..2 {
            let db = open(&path, &NEWER).unwrap();
            let sum: i32 = db
                .query_row("SELECT a + b FROM t", [], |r| r.get(0))
                .unwrap();
            assert_eq!(sum, 10);
            let enforced = "PRAGMA foreign_keys";
            assert!(db.query_row(enforced, [], |r| r.get::<_, bool>(0)).unwrap());
        }
    }

    #[test]
    fn who_only_looks_leaves_an_older_database_to_those_who_use_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.db");
        let db = open(&path, &SCHEMA).unwrap();
        db.execute("INSERT INTO t VALUES (7)", []).unwrap();
        let seen = open_as_it_is(&path, &NEWER).unwrap();
        let a: i32 = seen.query_row("SELECT a FROM t", [], |r| r.get(0)).unwrap();
        assert_eq!(a, 7);
        seen.execute("INSERT INTO t VALUES (8)", []).unwrap_err();
        drop(seen);
        drop(open(&path, &SCHEMA).unwrap());
        drop(open(&path, &NEWER).unwrap());
        let newer = open_as_it_is(&path, &SCHEMA).unwrap_err();
        assert!(matches!(newer, OpenError::Version { .. }), "{newer}");
        open_as_it_is(&dir.path().join("none.db"), &SCHEMA).unwrap_err();
        assert!(!dir.path().join("none.db").exists());
    }

    #[test]
    fn a_step_that_fails_or_breaks_a_reference_changes_nothing() {
        const REFERENCE: Step = |db| {
            db.execute_batch(
                "CREATE TABLE p (a INTEGER PRIMARY KEY);
                 CREATE TABLE c (a INTEGER REFERENCES p (a));
                 INSERT INTO c VALUES (1);",
            )
        };
        const BROKEN: Step = |db| db.execute_batch("CREATE TABLE u (a); CREATE TABLE t (a);");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.db");
        drop(open(&path, &SCHEMA).unwrap());
        for steps in [&[FIRST, REFERENCE], &[FIRST, BROKEN]] {
            open(&path, &Schema { steps, ..SCHEMA }).unwrap_err();
            let db = open(&path, &SCHEMA).unwrap();
            let tables = "SELECT count(*) FROM sqlite_schema WHERE type = 'table'";
            assert_eq!(db.query_row(tables, [], |r| r.get::<_, i32>(0)).unwrap(), 1);
        }
    }

    #[test]
    fn a_foreign_file_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let other_program = dir.path().join("other.db");
        let db = Connection::open(&other_program).unwrap();
        db.execute_batch("CREATE TABLE theirs (x)").unwrap();
        drop(db);
        let no_database = dir.path().join("text.db");
        std::fs::write(&no_database, [b'x'; 4096]).unwrap();
        for path in [other_program, no_database] {
            let before = std::fs::read(&path).unwrap();
            let error = open(&path, &SCHEMA).unwrap_err();
            assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), before);
        }
    }

    #[test]
    fn many_openers_of_a_new_database_all_succeed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.db");
        std::thread::scope(|scope| {
            for n in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    let db = open(path, &SCHEMA).unwrap();
                    db.execute("INSERT INTO t VALUES (?)", [n]).unwrap();
                });
            }
        });
        let db = open(&path, &SCHEMA).unwrap();
        let n: i32 = db
            .query_row("SELECT count(*) FROM t", [], |r| r.get(0))
            .unwrap();
        assert_eq!(n, 8);
    }
}
