//! Whose logs were compared with a catalog that was made again after a loss, or restored from a backup.
//!
//! Such a catalog may know less than the lost one did; of what it lacks the logs of the vaults name some. The mark
//! that it was made again is in it before it has its name, and stays. A vault is noted in the transaction
//! that adds the records of what its log names and was not found, or when it is new. Whatever stops a
//! rebuild in between leaves the vault without its note, and its keys are not called safe to disable until
//! another rebuild has made up for that.

use database::{Connection, Database, Mode, params};
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
    db.execute(
        "INSERT INTO made_again VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET time = excluded.time",
        params![now],
    )?;
    db.execute("DELETE FROM noted_vaults", &[])?;
    Ok(())
}

/// Notes a vault with what was not found by its log.
pub(super) fn insert(
    db: &Database,
    url: &str,
    not_found: &[DepartedRecord],
) -> Result<(), CatalogError> {
    db.transaction(Mode::Write, |db| {
        for record in not_found {
            departed::insert(db, record)?;
        }
        db.execute(
            "INSERT INTO noted_vaults VALUES (?) ON CONFLICT DO NOTHING",
            params![url],
        )?;
        Ok(())
    })
}

/// Another vault that gets the URL has another log.
pub(super) fn forget(db: &Connection, vault: &str) -> Result<(), CatalogError> {
    db.execute(
        "DELETE FROM noted_vaults WHERE url IN (SELECT url FROM vaults WHERE name = ?)",
        params![vault],
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
    let time: Option<String> = db.value(sql, params![url])?;
    time.map(|time| parse_time(WHAT, &time)).transpose()
}
