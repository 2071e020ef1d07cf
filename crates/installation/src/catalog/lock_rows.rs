//! The rows of locks.

use database::{Connection, Row, params};

use super::columns::{damaged, missing, parse_time, time_text, uuid};
use super::error::CatalogError;
use super::locks::{self, Change, Lock, LockLevel, LockRecord, LockTarget};
use super::management::{DEFAULT_GROUP, Touch};
use super::record::Kind;

/// How a lock on everything is stored.
const SUBSCRIPTION: &str = "subscription";
/// The columns of a lock, and the group of a resource, if it is said.
pub(super) const LOCKS: &str = "SELECT locks.kind, target, locks.name, level, notes, locks.created, locks.created_by, \
     in_group FROM locks LEFT JOIN placements ON placements.kind = locks.kind AND placements.name = target \
     ORDER BY locks.kind, target, locks.name";

/// Refuses, within a transaction, a change that a lock forbids.
pub(super) fn refuse(
    db: &Connection,
    kind: Kind,
    name: &str,
    change: Change,
) -> Result<(), CatalogError> {
    let all = db.select(LOCKS, &[], parse)?;
    if all.is_empty() {
        return Ok(());
    }
    let group: Option<String> = match kind {
        Kind::Group => Some(name.into()),
        _ => db.value(
            "SELECT in_group FROM placements WHERE kind = ? AND name = ?",
            params![kind.as_str(), name],
        )?,
    };
    let group = group.as_deref().unwrap_or(DEFAULT_GROUP);
    locks::refuse(&all, (kind, name), group, change)
}

/// Refuses, within a transaction, a lock on a disk, a snapshot or an image that is being deleted: nothing keeps it any
/// more.
pub(super) fn refuse_on_going(db: &Connection, target: &LockTarget) -> Result<(), CatalogError> {
    let LockTarget::Resource(kind, name) = target else {
        return Ok(());
    };
    let sql =
        "SELECT 1 FROM resources WHERE kind = ? AND name = ? AND state IN ('deleting', 'erased')";
    match db.value::<i64>(sql, params![kind.as_str(), name])? {
        None => Ok(()),
        Some(_) => Err(missing(*kind, name)),
    }
}

pub(super) fn insert(db: &Connection, record: &LockRecord) -> Result<(), CatalogError> {
    let name = &record.name;
    let (kind, target) = columns(&record.target);
    db.execute(
        "INSERT INTO locks VALUES (?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (kind, target, name) DO UPDATE SET level = excluded.level, notes = excluded.notes",
        params![
            kind,
            target,
            name,
            record.level.as_str(),
            record.notes,
            time_text(name, record.created.at)?,
            record.created.by.to_string(),
        ],
    )?;
    Ok(())
}

/// Kind and name of what a lock is on, as they are stored.
pub(super) fn columns(target: &LockTarget) -> (&str, &str) {
    match target {
        LockTarget::Subscription => (SUBSCRIPTION, ""),
        LockTarget::Group(group) => (Kind::Group.as_str(), group),
        LockTarget::Resource(kind, name) => (kind.as_str(), name),
    }
}

pub(super) fn parse(row: &Row) -> Result<Lock, CatalogError> {
    let (kind, of): (String, String) = (row.get(0)?, row.get(1)?);
    let (name, level): (String, String) = (row.get(2)?, row.get(3)?);
    let (target, group) = match Kind::from_text(&kind) {
        None if kind == SUBSCRIPTION => (LockTarget::Subscription, None),
        None => return Err(damaged(&name, format!("kind '{kind}'"))),
        Some(Kind::Group) => (LockTarget::Group(of.clone()), Some(of)),
        Some(kind) => {
            let placed: Option<String> = row.get(7)?;
            let group = placed.unwrap_or_else(|| DEFAULT_GROUP.into());
            (LockTarget::Resource(kind, of), Some(group))
        }
    };
    let record = LockRecord {
        target,
        level: LockLevel::from_text(&level)
            .ok_or_else(|| damaged(&name, format!("level '{level}'")))?,
        notes: row.get(4)?,
        created: Touch {
            at: parse_time(&name, row.text(5)?)?,
            by: uuid(&name, row.text(6)?)?,
        },
        name,
    };
    Ok(Lock { record, group })
}
