//! That a catalog was moved from its file to a server: the mark in the file, which ends its use.
//!
//! Whoever opens the file is told where the catalog is. For those who have it open already, of an older version of this
//! program too, nothing can be changed in it any more: triggers refuse that, in words that say why.
//!
//! The mark makes the file one of the next version, which an older program does not open. A file that was not moved has
//! nothing of it, so that the program of before opens that again.

use database::sqlite::{Schema, Step};
use database::{Connection, params};
use rusqlite::Transaction;
use time::OffsetDateTime;
use uuid::Uuid;

use super::columns::{parse_time, time_text, uuid};
use super::error::CatalogError;
use super::schema::SCHEMA;

/// The table.
const TABLE: &str = "
CREATE TABLE IF NOT EXISTS moved (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    place        TEXT NOT NULL,
    installation TEXT NOT NULL,
    time         TEXT NOT NULL,
    finished     INTEGER NOT NULL
) STRICT
";

/// A catalog that was moved. Nothing is brought up to it but by [`mark`].
pub(super) const MARKED: Schema = Schema {
    what: SCHEMA.what,
    application_id: SCHEMA.application_id,
    steps: &STEPS,
};

const STEPS: [Step; SCHEMA.steps.len() + 1] = {
    let mut steps: [Step; SCHEMA.steps.len() + 1] = [make_table; SCHEMA.steps.len() + 1];
    let mut at = 0;
    while at < SCHEMA.steps.len() {
        steps[at] = SCHEMA.steps[at];
        at += 1;
    }
    steps
};

fn make_table(db: &Transaction<'_>) -> rusqlite::Result<()> {
    db.execute_batch(TABLE)
}

/// Its name.
pub(super) const NAME: &str = "moved";

/// Where a catalog was moved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedRecord {
    /// The database, without its options.
    pub place: String,
    /// Whose catalog it is.
    pub installation: Uuid,
    /// When.
    pub time: OffsetDateTime,
    /// Whether the database is known to be in use.
    pub is_finished: bool,
}

/// The mark, if there is one.
pub(super) fn found(db: &Connection) -> Result<Option<MovedRecord>, CatalogError> {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?";
    if db.the_value::<i64>(sql, params![NAME])? == 0 {
        return Ok(None);
    }
    let sql = "SELECT place, installation, time, finished FROM moved";
    db.first(sql, &[], |row| {
        Ok(MovedRecord {
            place: row.get(0)?,
            installation: uuid(NAME, row.text(1)?)?,
            time: parse_time(NAME, row.text(2)?)?,
            is_finished: row.get(3)?,
        })
    })
}

/// Marks the catalog as moved, and has all of these tables stay as they are.
pub(super) fn mark(
    db: &Connection,
    tables: &[&str],
    record: &MovedRecord,
) -> Result<(), CatalogError> {
    db.execute(TABLE, &[])?;
    let version = format!("PRAGMA user_version = {}", MARKED.steps.len());
    db.execute(&version, &[])?;
    db.execute(
        "INSERT INTO moved VALUES (1, ?, ?, ?, ?)",
        params![
            record.place,
            record.installation.to_string(),
            time_text(NAME, record.time)?,
            record.is_finished
        ],
    )?;
    let why = format!(
        "the catalog was moved to {}: start this again with --catalog",
        record.place
    );
    let why = why.replace('\'', "''");
    for table in tables {
        for change in ["INSERT", "UPDATE", "DELETE"] {
            db.execute(
                &format!(
                    "CREATE TRIGGER moved_{table}_{change} BEFORE {change} ON {table} \
                     BEGIN SELECT RAISE(ABORT, '{why}'); END"
                ),
                &[],
            )?;
        }
    }
    Ok(())
}

/// Notes that the database is in use.
pub(super) fn finish(db: &Connection) -> Result<(), CatalogError> {
    db.execute("UPDATE moved SET finished = 1", &[])?;
    Ok(())
}
