//! Who has used which key version, and when last.

use database::{Connection, Row, params};
use time::OffsetDateTime;

use super::columns::{text, time, uuid};
use crate::{KeyUsed, NAMED_DISKS, VaultError};

/// One use of a key version.
pub(crate) struct UseRow<'a> {
    pub name: &'a str,
    pub version: &'a str,
    pub caller: &'a str,
    pub operation: &'a str,
    pub disk: &'a str,
    pub origin: &'a str,
    pub time: OffsetDateTime,
}

/// Counts a use.
pub(crate) fn note_use(db: &Connection, row: &UseRow<'_>) -> Result<(), VaultError> {
    let caller = row.caller;
    let at = text(row.time)?;
    let sql = "UPDATE key_uses SET uses = uses + 1, last = ?, origin = ? WHERE name = ? AND \
               version = ? AND caller = ? AND operation = ? AND disk = ?";
    let known = db.execute(
        sql,
        params![
            at,
            row.origin,
            row.name,
            row.version,
            caller,
            row.operation,
            row.disk
        ],
    )?;
    if known > 0 {
        return Ok(());
    }
    let sql = "SELECT count(*) FROM key_uses WHERE name = ? AND version = ? AND caller = ? AND \
               operation = ?";
    let disks: i64 = db.the_value(sql, params![row.name, row.version, caller, row.operation])?;
    let disk = if disks < i64::from(NAMED_DISKS) {
        row.disk
    } else {
        ""
    };
    let sql = "INSERT INTO key_uses (name, version, caller, operation, disk, origin, first, last, \
               uses) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1) \
               ON CONFLICT (name, version, caller, operation, disk) DO UPDATE \
               SET uses = key_uses.uses + 1, last = excluded.last, origin = excluded.origin";
    db.execute(
        sql,
        params![
            row.name,
            row.version,
            caller,
            row.operation,
            disk,
            row.origin,
            at,
            at
        ],
    )?;
    Ok(())
}

/// The uses of a key, or of one version of it, by version and caller.
pub(crate) fn key_uses(
    db: &Connection,
    name: &str,
    version: Option<&str>,
) -> Result<Vec<KeyUsed>, VaultError> {
    let sql = "SELECT version, caller, operation, disk, origin, first, last, uses FROM key_uses \
               WHERE name = ?1 AND (version = ?2 OR ?2 IS NULL) \
               ORDER BY version, caller, operation, disk";
    db.select(sql, params![name, version], key_used)
}

/// The names of the keys that have been used.
pub(crate) fn used_keys(db: &Connection) -> Result<Vec<String>, VaultError> {
    let sql = "SELECT DISTINCT name FROM key_uses ORDER BY name";
    db.select(sql, &[], |row| Ok(row.get(0)?))
}

/// Forgets the uses of a key that is gone for good.
pub(super) fn erase_uses(db: &Connection, name: &str) -> Result<(), VaultError> {
    db.execute("DELETE FROM key_uses WHERE name = ?", params![name])?;
    Ok(())
}

fn key_used(row: &Row) -> Result<KeyUsed, VaultError> {
    let disk: String = row.get(3)?;
    Ok(KeyUsed {
        version: row.get(0)?,
        caller: uuid(row.text(1)?)?,
        operation: row.get(2)?,
        disk: (!disk.is_empty()).then_some(disk),
        origin: row.get(4)?,
        first: time(row.text(5)?)?,
        last: time(row.text(6)?)?,
        uses: row.get::<i64>(7)?.unsigned_abs(),
    })
}
