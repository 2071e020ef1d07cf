//! That a catalog was moved from its file to a server: the mark in the file, which ends its use.
//!
//! Whoever opens the file is told where the catalog is. For those who have it open already, of an older version of this
//! program too, nothing can be changed in it any more: triggers refuse that, in words that say why.

use database::{Connection, params};
use time::OffsetDateTime;
use uuid::Uuid;

use super::columns::{parse_time, time_text, uuid};
use super::error::CatalogError;

/// The table.
pub(super) const TABLE: &str = "
CREATE TABLE moved (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    place        TEXT NOT NULL,
    installation TEXT NOT NULL,
    time         TEXT NOT NULL,
    finished     INTEGER NOT NULL
) STRICT;
";

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
