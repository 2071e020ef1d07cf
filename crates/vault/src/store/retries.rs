//! What is due and failed: when it is tried again.

use database::{Connection, params};
use time::OffsetDateTime;

use super::columns::{small, text, time};
use crate::VaultError;

/// Something that a vault does by itself when its time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DueKind {
    /// The end of a deleted key.
    Purge,
    /// A new version by the rotation policy.
    Rotate,
}

impl DueKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Purge => "purge",
            Self::Rotate => "rotate",
        }
    }
}

/// How often it has failed, and when it is tried again. What never failed is put off for another reason.
pub(crate) struct Retry {
    pub attempts: u32,
    pub next: OffsetDateTime,
}

/// What failed before; `None` for what has not.
pub(crate) fn retry(
    db: &Connection,
    kind: DueKind,
    name: &str,
) -> Result<Option<Retry>, VaultError> {
    let sql = "SELECT attempts, next FROM due_retries WHERE kind = ? AND name = ?";
    db.first(sql, params![kind.as_str(), name], |row| {
        Ok(Retry {
            attempts: small(row.get(0)?)?,
            next: time(row.text(1)?)?,
        })
    })
}

/// Notes a failure.
pub(crate) fn put_retry(
    db: &Connection,
    kind: DueKind,
    name: &str,
    retry: &Retry,
) -> Result<(), VaultError> {
    let sql = "INSERT INTO due_retries (kind, name, attempts, next) VALUES (?, ?, ?, ?) \
               ON CONFLICT (kind, name) DO UPDATE \
               SET attempts = excluded.attempts, next = excluded.next";
    db.execute(
        sql,
        params![
            kind.as_str(),
            name,
            i64::from(retry.attempts),
            text(retry.next)?
        ],
    )?;
    Ok(())
}

/// Lets everything that has failed be tried again at once.
pub(crate) fn end_pauses(db: &Connection, now: OffsetDateTime) -> Result<(), VaultError> {
    let sql = "UPDATE due_retries SET next = ? WHERE attempts > 0";
    db.execute(sql, params![text(now)?])?;
    Ok(())
}

/// When the last record was made, by the clock of then.
pub(crate) fn last_recorded(db: &Connection) -> Result<Option<OffsetDateTime>, VaultError> {
    let sql = "SELECT time FROM audit_head";
    db.first(sql, &[], |row| time(row.text(0)?))
}

/// It was done, or is not due any more.
pub(crate) fn clear_retry(db: &Connection, kind: DueKind, name: &str) -> Result<(), VaultError> {
    let sql = "DELETE FROM due_retries WHERE kind = ? AND name = ?";
    db.execute(sql, params![kind.as_str(), name])?;
    Ok(())
}
