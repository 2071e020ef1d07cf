//! That the catalog was restored from a backup, or made again after a loss: it may not know all that there is.
//!
//! No log makes up for that. After a restore those of the vaults are as old; and a snapshot or an image never used the
//! key under its own name, so that none names it. So no key of a vault from then is called safe to
//! disable until the operator says that a rebuild has looked into every directory with disks. The mark is in the catalog
//! before the catalog has its name, and in the catalog's copy.

use database::{Connection, params};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::CatalogError;
use super::columns::{optional_time_text, parse_time, time_text};

/// The table.
pub(super) const TABLE: &str = "
CREATE TABLE restored (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    backup TEXT NOT NULL,
    time   TEXT NOT NULL
) STRICT;
";

/// A catalog that was made again is of no backup.
pub(super) const WITHOUT_BACKUP: &str = "
CREATE TABLE new_restored (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    backup TEXT,
    time   TEXT NOT NULL
) STRICT;
INSERT INTO new_restored SELECT id, backup, time FROM restored;
DROP TABLE restored;
ALTER TABLE new_restored RENAME TO restored;
";

const WHAT: &str = "restored";

/// A restore, or a catalog that was made again, which no rebuild has made up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestoredRecord {
    /// When the backup was made; `None` where the catalog was lost and made again.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub backup: Option<OffsetDateTime>,
    /// When it was restored, or made again.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
}

impl RestoredRecord {
    /// Of a catalog that is made again now.
    pub fn made_again() -> Self {
        Self {
            backup: None,
            time: OffsetDateTime::now_utc(),
        }
    }

    /// Whether the catalog may not know all that a vault from `created` is used for. One that was made since then has
    /// wrapped nothing before.
    pub fn is_about(&self, created: OffsetDateTime) -> bool {
        created <= self.time
    }
}

/// Notes a restore. Of two the older backup counts.
pub(super) fn mark(db: &Connection, record: &RestoredRecord) -> Result<(), CatalogError> {
    db.execute(
        "INSERT INTO restored VALUES (1, ?, ?) ON CONFLICT (id) DO UPDATE \
         SET backup = coalesce(restored.backup, excluded.backup), time = excluded.time",
        params![
            optional_time_text(WHAT, record.backup)?,
            time_text(WHAT, record.time)?
        ],
    )?;
    Ok(())
}

pub(super) fn found(db: &Connection) -> Result<Option<RestoredRecord>, CatalogError> {
    db.first("SELECT backup, time FROM restored", &[], |row| {
        let backup: Option<String> = row.get(0)?;
        Ok(RestoredRecord {
            backup: backup.map(|text| parse_time(WHAT, &text)).transpose()?,
            time: parse_time(WHAT, row.text(1)?)?,
        })
    })
}

pub(super) fn clear(db: &Connection) -> Result<(), CatalogError> {
    db.execute("DELETE FROM restored", &[])?;
    Ok(())
}
