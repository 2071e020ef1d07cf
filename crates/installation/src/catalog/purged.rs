//! The vaults that were purged here: their keys are destroyed, and nothing brings them back.
//!
//! That the catalog has no row of a vault does not prove it. A catalog that was restored, or made again while the
//! vault's files were away, has none either, and the vault may come back; a disk that runs must not lose its DEK because
//! of that. Nor has a vault been purged whose files were lost and which was given up: a backup may have them. So the purge
//! notes itself, after the keys are destroyed and before the row goes. The note goes when there is a vault of that URL
//! again, and with a restore, since the backup may be older than a vault that was made in its place.

use database::{Connection, params};
use time::OffsetDateTime;

use super::CatalogError;
use super::columns::{parse_time, time_text};

/// The table.
pub(super) const TABLE: &str = "
CREATE TABLE purged_vaults (
    url  TEXT PRIMARY KEY,
    time TEXT NOT NULL
) STRICT;
";

pub(super) fn insert(db: &Connection, url: &str) -> Result<(), CatalogError> {
    db.execute(
        "INSERT INTO purged_vaults VALUES (?, ?) ON CONFLICT (url) DO UPDATE SET time = excluded.time",
        params![url, time_text(url, OffsetDateTime::now_utc())?],
    )?;
    Ok(())
}

pub(super) fn since(db: &Connection, url: &str) -> Result<Option<OffsetDateTime>, CatalogError> {
    let sql = "SELECT time FROM purged_vaults WHERE url = ?";
    let time: Option<String> = db.value(sql, params![url])?;
    time.map(|time| parse_time(url, &time)).transpose()
}

/// Forgets the purge of the vault with that URL, or of all.
pub(super) fn forget(db: &Connection, url: Option<&str>) -> Result<(), CatalogError> {
    db.execute(
        "DELETE FROM purged_vaults WHERE url = ?1 OR ?1 IS NULL",
        params![url],
    )?;
    Ok(())
}
