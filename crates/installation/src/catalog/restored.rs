//! That the catalog was restored from a backup: what was made since then it does not know.
//!
//! No log makes up for that, since those of the vaults are as old. So no key of a vault from then is called safe to
//! disable until the operator says that a rebuild has looked into every directory with disks. The mark is in the catalog
//! before the restored state directory is one, and in the catalog's copy.

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::CatalogError;
use super::columns::{parse_time, time_text};

/// The table.
pub(super) const TABLE: &str = "
CREATE TABLE restored (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    backup TEXT NOT NULL,
    time   TEXT NOT NULL
) STRICT;
";

const WHAT: &str = "restored";

/// A restore that no rebuild has made up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestoredRecord {
    /// When the backup was made.
    #[serde(with = "time::serde::rfc3339")]
    pub backup: OffsetDateTime,
    /// When it was restored.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
}

/// Notes a restore. Of two the older backup counts.
pub(super) fn mark(db: &Connection, record: &RestoredRecord) -> Result<(), CatalogError> {
    db.execute(
        "INSERT INTO restored VALUES (1, ?, ?) ON CONFLICT (id) DO UPDATE SET time = excluded.time",
        params![
            time_text(WHAT, record.backup)?,
            time_text(WHAT, record.time)?
        ],
    )?;
    Ok(())
}

pub(super) fn found(db: &Connection) -> Result<Option<RestoredRecord>, CatalogError> {
    let times: Option<(String, String)> = db
        .query_row("SELECT backup, time FROM restored", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let parse = |(backup, time): (String, String)| {
        Ok(RestoredRecord {
            backup: parse_time(WHAT, &backup)?,
            time: parse_time(WHAT, &time)?,
        })
    };
    times.map(parse).transpose()
}

pub(super) fn clear(db: &Connection) -> Result<(), CatalogError> {
    db.execute("DELETE FROM restored", [])?;
    Ok(())
}
