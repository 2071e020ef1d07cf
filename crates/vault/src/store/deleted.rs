//! Deleted keys.

use database::{Connection, Row, params};
use time::OffsetDateTime;

use super::columns::{text, time};
use crate::{VaultError, VaultErrorCode, check_key_name};

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

/// The deleted key of that name, which is none where no key is called so.
pub(crate) fn deleted_key(db: &Connection, name: &str) -> Result<Option<DeletedRow>, VaultError> {
    if check_key_name(name).is_err() {
        return Ok(None);
    }
    let sql = "SELECT name, deleted, purge_at FROM deleted_keys WHERE name = ?";
    db.first(sql, params![name], parse)
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
    db.select(sql, params![after, max], parse)
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
    match db.execute("DELETE FROM deleted_keys WHERE name = ?", params![name])? {
        1 => Ok(()),
        _ => Err(VaultError::new(
            VaultErrorCode::Conflict,
            format!("the key '{name}' was recovered or purged at the same time"),
        )),
    }
}

fn parse(row: &Row) -> Result<DeletedRow, VaultError> {
    Ok(DeletedRow {
        name: row.get(0)?,
        deleted: time(row.text(1)?)?,
        purge_at: time(row.text(2)?)?,
    })
}
