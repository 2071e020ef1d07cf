//! That a vault, or a log, was moved from its file to a server: the mark in the file, which ends its use.
//!
//! Whoever opens the file is told where it is. For those who have it open already nothing can be changed in it any more:
//! triggers refuse that, in words that say why. The table of the mark is none of a version of the file: it is made with it.

use std::path::Path;

use database::{Connection, Error, params};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::{VaultError, VaultErrorCode};

/// The table.
const TABLE: &str = "
CREATE TABLE moved (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    place TEXT NOT NULL,
    time  TEXT NOT NULL
) STRICT";

/// Its name.
pub(crate) const NAME: &str = "moved";

/// Where what is in an SQLite file was moved to, if it was.
pub(crate) fn place_of(db: &Connection) -> Result<Option<String>, Error> {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE name = ?";
    match db.the_value::<i64>(sql, params![NAME])? {
        0 => Ok(None),
        _ => db.value("SELECT place FROM moved", &[]),
    }
}

/// Refuses the file of a vault that is on a server by now.
pub(crate) fn refuse(db: &Connection, path: &Path) -> Result<(), VaultError> {
    match place_of(db)? {
        None => Ok(()),
        Some(place) => Err(VaultError::new(
            VaultErrorCode::Conflict,
            format!(
                "the key vault in {} was moved to {place}: give --catalog, or set SEALDISK_CATALOG, with its address",
                path.display()
            ),
        )),
    }
}

/// Marks what is in a file as moved, and has these tables stay as they are. In a transaction of it.
pub(crate) fn mark(db: &Connection, tables: &[&str], place: &str) -> Result<(), Error> {
    db.execute(TABLE, &[])?;
    let now = OffsetDateTime::now_utc().format(&Rfc3339);
    db.execute(
        "INSERT INTO moved VALUES (1, ?, ?)",
        params![place, now.unwrap_or_default()],
    )?;
    let why = format!("it was moved to {place}: start this again with --catalog");
    let why = why.replace('\'', "''");
    for table in tables {
        for change in ["INSERT", "UPDATE", "DELETE"] {
            let sql = format!(
                "CREATE TRIGGER moved_{table}_{change} BEFORE {change} ON {table} \
                 BEGIN SELECT RAISE(ABORT, '{why}'); END"
            );
            db.execute(&sql, &[])?;
        }
    }
    Ok(())
}
