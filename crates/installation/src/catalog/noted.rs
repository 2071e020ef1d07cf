//! Whose logs were compared with a catalog that was made again after a loss, or restored from a backup.
//!
//! Such a catalog may know less than the lost one did; of what it lacks the logs of the vaults name some. The mark
//! that it was made again is in it before it has its name, and stays. A vault is noted in the transaction
//! that adds the records of what its log names and was not found, or when it is new. Whatever stops a
//! rebuild in between leaves the vault without its note, and its keys are not called safe to disable until
//! another rebuild has made up for that.

use rusqlite::{Connection, OptionalExtension, params};
use time::OffsetDateTime;

use super::columns::{parse_time, time_text};
use super::{CatalogError, DepartedRecord, departed};

/// The tables.
pub(super) const TABLES: &str = "
CREATE TABLE made_again (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    time TEXT NOT NULL
) STRICT;
CREATE TABLE noted_vaults (
    url TEXT PRIMARY KEY
) STRICT;
";

const WHAT: &str = "made_again";

/// Marks a catalog as one that was made again now. What an earlier one had noted says nothing of it.
pub(super) fn mark(db: &Connection) -> Result<(), CatalogError> {
    let now = time_text(WHAT, OffsetDateTime::now_utc())?;
    db.execute("INSERT OR REPLACE INTO made_again VALUES (1, ?)", [now])?;
    db.execute("DELETE FROM noted_vaults", [])?;
    Ok(())
}

/// Notes a vault with what was not found by its log.
pub(super) fn insert(
    db: &mut Connection,
    url: &str,
    not_found: &[DepartedRecord],
) -> Result<(), CatalogError> {
    let transaction = db.transaction()?;
    for record in not_found {
        departed::insert(&transaction, record)?;
    }
    transaction.execute(
        "INSERT INTO noted_vaults VALUES (?) ON CONFLICT DO NOTHING",
        [url],
    )?;
    Ok(transaction.commit()?)
}

/// Another vault that gets the URL has another log.
pub(super) fn forget(db: &Connection, vault: &str) -> Result<(), CatalogError> {
    db.execute(
        "DELETE FROM noted_vaults WHERE url IN (SELECT url FROM vaults WHERE name = ?)",
        [vault],
    )?;
    Ok(())
}

/// When the catalog was made again, if the vault was not noted since.
pub(super) fn missing_since(
    db: &Connection,
    url: &str,
) -> Result<Option<OffsetDateTime>, CatalogError> {
    let sql =
        "SELECT time FROM made_again WHERE NOT EXISTS (SELECT 1 FROM noted_vaults WHERE url = ?)";
    let time: Option<String> = db
        .query_row(sql, params![url], |row| row.get(0))
        .optional()?;
    time.map(|time| parse_time(WHAT, &time)).transpose()
}
