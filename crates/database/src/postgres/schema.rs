//! The tables of a database, and of which version they are.

use super::session::Session;
use crate::OpenError;
use crate::error::{Error, ErrorKind};
use crate::value::{ToValue, Value};

/// What a database of this program looks like. Several of them have their tables side by side.
#[derive(Debug, Clone, Copy)]
pub struct Schema {
    /// What it is, for messages: "catalog", "key vault".
    pub what: &'static str,
    /// Tells it from others: the same as in SQLite.
    pub application_id: i32,
    /// The first step makes version 1, the second makes version 2 of it, and so on. The versions are PostgreSQL's own. A
    /// step that was released never changes.
    pub steps: &'static [&'static str],
}

/// What says which versions there are, and what every connection has committed last.
const TABLES: &str = r#"
CREATE TABLE IF NOT EXISTS sealdisk_schema (
    application_id integer PRIMARY KEY,
    version        integer NOT NULL
);
CREATE TABLE IF NOT EXISTS sealdisk_commits (
    id     uuid PRIMARY KEY,
    number bigint NOT NULL,
    time   timestamptz NOT NULL
);
"#;

/// What is looked at: whether new tables have a place, whether our own are there, and whether anything is.
const LOOK: &str = "
SELECT current_schema() IS NOT NULL, to_regclass('sealdisk_schema') IS NOT NULL, EXISTS (
    SELECT FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = current_schema())";

impl Schema {
    /// The version that this program reads and writes.
    fn version(&self) -> i32 {
        i32::try_from(self.steps.len()).unwrap_or(i32::MAX)
    }

    /// A lock that goes with the transaction: of those who change something, or of one who is alone.
    pub(super) fn lock(&self, is_alone: bool) -> String {
        let shared = if is_alone { "" } else { "_shared" };
        let id = self.application_id;
        format!("SELECT pg_advisory_xact_lock{shared}({id}, hashtext(current_schema()))")
    }

    /// Makes the tables where there are none, and takes the steps that are missing, all or none of them.
    pub(super) fn make_ready(&self, session: &mut Session, place: &str) -> Result<(), OpenError> {
        let engine = |source| self.failed(place, source);
        if self.found(session, place)? == self.version() {
            return Ok(());
        }
        // Nobody changes anything meanwhile; and another process may have taken the steps since the look.
        session
            .batch(&format!("BEGIN; {}", self.lock(true)))
            .map_err(engine)?;
        let found = self.found(session, place)?;
        session.batch(TABLES).map_err(engine)?;
        let taken = usize::try_from(found).unwrap_or_default();
        for step in self.steps.iter().skip(taken) {
            session.batch(step).map_err(engine)?;
        }
        let note = "INSERT INTO sealdisk_schema VALUES (?, ?) \
                    ON CONFLICT (application_id) DO UPDATE SET version = excluded.version";
        let values = [self.application_id, self.version()].map(i64::from);
        session
            .execute(note, &values.each_ref().map(ToValue::to_value))
            .and_then(|_| session.batch("COMMIT"))
            .map_err(engine)
    }

    /// Whether there is anything of it, of a version that this program can read or bring up to date.
    pub(super) fn is_there(&self, session: &mut Session, place: &str) -> Result<bool, OpenError> {
        Ok(self.found(session, place)? > 0)
    }

    /// Whether the database that a lost connection led to is still what is there.
    pub(super) fn check(&self, session: &mut Session, place: &str) -> Result<(), Error> {
        match self.found(session, place) {
            Ok(found) if found == self.version() => Ok(()),
            Ok(_) | Err(OpenError::NoSchema { .. }) => Err(Error::new(
                ErrorKind::Missing,
                format!("the {} {place} is not there any more", self.what),
            )),
            Err(OpenError::Engine { source, .. }) => Err(source),
            Err(other) => Err(Error::new(ErrorKind::Other, other.to_string())),
        }
    }

    /// The version of the database, 0 when there is nothing of this yet; an error when it is somebody else's or newer.
    fn found(&self, session: &mut Session, place: &str) -> Result<i32, OpenError> {
        let engine = |source| self.failed(place, source);
        let looked = session.query(LOOK, &[]).map_err(engine)?;
        let looked = looked.first().map(|row| {
            let column = |at: usize| row.get::<bool>(at);
            Ok((column(0)?, column(1)?, column(2)?))
        });
        let (has_place, has_own, has_any) = looked.transpose().map_err(engine)?.unwrap_or_default();
        let (place, what) = (place.to_owned(), self.what);
        if !has_place {
            return Err(OpenError::NoSchema { place, what });
        }
        match (has_own, has_any) {
            (false, false) => return Ok(0),
            (false, true) => return Err(OpenError::Occupied { place, what }),
            (true, _) => {}
        }
        let sql = "SELECT version FROM sealdisk_schema WHERE application_id = ?";
        let id = [Value::Integer(self.application_id.into())];
        let found = session.query(sql, &id).map_err(engine)?;
        let version = found.first().map_or(Ok(0), |row| row.get::<i64>(0));
        let found = i32::try_from(version.map_err(engine)?).unwrap_or(i32::MAX);
        let known = self.version();
        match (0..=known).contains(&found) {
            true => Ok(found),
            false => Err(OpenError::Version {
                place,
                what,
                found,
                known,
            }),
        }
    }

    pub(super) fn failed(&self, place: &str, source: Error) -> OpenError {
        OpenError::Engine {
            place: place.into(),
            what: self.what,
            source,
        }
    }
}
