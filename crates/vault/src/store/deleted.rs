//! Deleted keys in `vault.db`.

use rusqlite::{Connection, OptionalExtension, Row, params};
use time::OffsetDateTime;

use super::columns::{text, time};
use crate::{VaultError, VaultErrorCode};

/// A key that is deleted and not yet purged.
pub(crate) struct DeletedRow {
    pub name: String,
    pub deleted: OffsetDateTime,
    pub purge_at: OffsetDateTime,
}

/// Hides a key.
pub(crate) fn insert_deleted(db: &Connection, row: &DeletedRow) -> Result<(), VaultError> {
    db.execute(
        "INSERT INTO deleted_keys (name, deleted, purge_at) VALUES (?, ?, ?)",
        params![row.name, text(row.deleted)?, text(row.purge_at)?],
    )?;
    Ok(())
}

/// The deleted key of that name.
pub(crate) fn deleted_key(db: &Connection, name: &str) -> Result<Option<DeletedRow>, VaultError> {
    let sql = "SELECT name, deleted, purge_at FROM deleted_keys WHERE name = ?";
    let found = db
        .prepare_cached(sql)?
        .query_row([name], columns)
        .optional()?;
    found.map(parse).transpose()
}

/// At most `max` deleted keys behind the name `after`, by name.
pub(crate) fn deleted_keys(
    db: &Connection,
    after: &str,
    max: usize,
) -> Result<Vec<DeletedRow>, VaultError> {
    let sql = "SELECT name, deleted, purge_at FROM deleted_keys WHERE name > ? ORDER BY name \
               LIMIT ?";
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_map(params![after, max], columns)?;
    rows.map(|row| parse(row?)).collect()
}

/// Ends the retention time of a deleted key: nobody can recover it any more.
pub(crate) fn expire_deleted(
    db: &Connection,
    name: &str,
    now: OffsetDateTime,
) -> Result<(), VaultError> {
    let sql = "UPDATE deleted_keys SET purge_at = ? WHERE name = ?";
    db.execute(sql, params![text(now)?, name])?;
    Ok(())
}

/// Makes a key one that is not deleted; its versions are there again, or were erased.
pub(crate) fn remove_deleted(db: &Connection, name: &str) -> Result<(), VaultError> {
    match db.execute("DELETE FROM deleted_keys WHERE name = ?", [name])? {
        1 => Ok(()),
        _ => Err(VaultError::new(
            VaultErrorCode::Conflict,
            format!("the key '{name}' was recovered or purged at the same time"),
        )),
    }
}

type Columns = (String, String, String);

fn columns(row: &Row<'_>) -> rusqlite::Result<Columns> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

fn parse((name, deleted, purge_at): Columns) -> Result<DeletedRow, VaultError> {
    Ok(DeletedRow {
        name,
        deleted: time(&deleted)?,
        purge_at: time(&purge_at)?,
    })
}
