//! The table of disks, snapshots and images, and that of the layers that they have.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::columns::{
    constraint, damaged, missing, parse_json, parse_kind, parse_time, stale, time_text, uuid,
};
use super::{
    CatalogError, Change, DepartedRecord, DiskRecord, DiskState, LayerUse, Rev, Stored, departed,
    lock_rows,
};

/// What is under a set, by itself or by a layer.
pub(super) const UNDER_SET: &str = "des IS ?1 OR EXISTS (
    SELECT 1 FROM layer_uses AS uses WHERE uses.resource = resources.id AND uses.des IS ?1)";

/// The rows of what is being made or deleted, or was cut off in that. They are looked for before anything is made, and
/// are few among thousands.
pub(super) const UNFINISHED: &str = "state <> 'ready'";
/// An index of them alone. SQLite takes it for a query with the same condition.
pub(super) const UNFINISHED_INDEX: &str =
    "CREATE INDEX resources_unfinished ON resources (kind, name) WHERE state <> 'ready';";
/// The rows of a kind whose names are in an array of JSON, each of which is looked up.
pub(super) const NAMED: &str = "kind = ?1 AND name IN (SELECT value FROM json_each(?2))";

/// A query for the rows that meet a condition.
pub(super) fn select(condition: &str) -> String {
    format!(
        "SELECT id, rev, kind, name, directory, size, des, key_url, created, state, (
             SELECT json_group_array(json_object(
                 'layer', layer, 'diskEncryptionSet', uses.des, 'keyUrl', uses.key_url))
             FROM (SELECT * FROM layer_uses WHERE resource = resources.id ORDER BY place) AS uses
         ) AS layers
         FROM resources WHERE {condition} ORDER BY kind, name"
    )
}

/// Also whether it was among the departed.
pub(super) fn insert(
    db: &mut Connection,
    record: &DiskRecord,
) -> Result<(Rev, bool), CatalogError> {
    let name = &record.name;
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction
        .execute(
            "INSERT INTO resources VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                record.id.to_string(),
                record.kind.as_str(),
                name,
                record.directory.as_os_str().as_bytes(),
                size(record)?,
                record.disk_encryption_set,
                record.key_url,
                time_text(name, record.created)?,
                record.state.text(),
            ],
        )
        .map_err(|e| violated(e, record, record.disk_encryption_set.as_deref()))?;
    insert_layers(&transaction, record)?;
    let returned = departed::returned(&transaction, record)?;
    transaction.commit()?;
    Ok((Rev(1), returned))
}

pub(super) fn update(
    db: &mut Connection,
    rev: Rev,
    record: &DiskRecord,
) -> Result<Rev, CatalogError> {
    let (name, id) = (&record.name, record.id.to_string());
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if record.state == DiskState::Deleting {
        refuse_locked(&transaction, record)?;
    }
    let changed = transaction
        .execute(
            "UPDATE resources SET rev = rev + 1, name = ?, directory = ?, size = ?, des = ?, \
             key_url = ?, created = ?, state = ? WHERE id = ? AND rev = ?",
            params![
                name,
                record.directory.as_os_str().as_bytes(),
                size(record)?,
                record.disk_encryption_set,
                record.key_url,
                time_text(name, record.created)?,
                record.state.text(),
                id,
                rev.0,
            ],
        )
        .map_err(|e| violated(e, record, record.disk_encryption_set.as_deref()))?;
    if changed == 0 {
        return Err(gone_or_stale(&transaction, record)?);
    }
    transaction.execute("DELETE FROM layer_uses WHERE resource = ?", [&id])?;
    insert_layers(&transaction, record)?;
    transaction.commit()?;
    Ok(Rev(rev.0 + 1))
}

fn insert_layers(db: &Transaction<'_>, record: &DiskRecord) -> Result<(), CatalogError> {
    let mut statement = db.prepare_cached("INSERT INTO layer_uses VALUES (?, ?, ?, ?, ?)")?;
    for (place, layer) in record.layers.iter().enumerate() {
        let LayerUse {
            layer,
            disk_encryption_set,
            key_url,
        } = layer;
        statement
            .execute(params![
                record.id.to_string(),
                place as i64,
                layer.to_string(),
                disk_encryption_set,
                key_url,
            ])
            .map_err(|e| violated(e, record, disk_encryption_set.as_deref()))?;
    }
    Ok(())
}

/// Refuses to delete what a lock is on. What is being deleted already goes, and what never was whole.
fn refuse_locked(db: &Transaction<'_>, record: &DiskRecord) -> Result<(), CatalogError> {
    let id = record.id.to_string();
    let state: Option<String> = db
        .query_row("SELECT state FROM resources WHERE id = ?", [id], |row| {
            row.get(0)
        })
        .optional()?;
    match state.is_some_and(|state| state == DiskState::Ready.text()) {
        true => lock_rows::refuse(db, record.kind.into(), &record.name, Change::Delete),
        false => Ok(()),
    }
}

pub(super) fn delete(
    db: &Transaction<'_>,
    rev: Rev,
    record: &DiskRecord,
) -> Result<(), CatalogError> {
    refuse_locked(db, record)?;
    let deleted = db.execute(
        "DELETE FROM resources WHERE id = ? AND rev = ?",
        params![record.id.to_string(), rev.0],
    )?;
    match deleted {
        0 => Err(gone_or_stale(db, record)?),
        _ => Ok(()),
    }
}

/// Deletes a row, and keeps in mind what it was of.
pub(super) fn depart(
    db: &mut Connection,
    rev: Rev,
    record: &DiskRecord,
    departed: &DepartedRecord,
) -> Result<(), CatalogError> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    delete(&transaction, rev, record)?;
    departed::insert(&transaction, departed)?;
    Ok(transaction.commit()?)
}

fn gone_or_stale(db: &Connection, record: &DiskRecord) -> Result<CatalogError, CatalogError> {
    let id = record.id.to_string();
    let there: Option<i64> = db
        .query_row("SELECT rev FROM resources WHERE id = ?", [id], |row| {
            row.get(0)
        })
        .optional()?;
    let kind = record.kind.into();
    Ok(match there {
        Some(_) => stale(kind, &record.name),
        None => missing(kind, &record.name),
    })
}

/// Refuses the deletion of a set that anything is under.
pub(super) fn refuse_set_in_use(db: &Connection, set: &str) -> Result<(), CatalogError> {
    let sql = format!(
        "SELECT kind, name, count(*) OVER () FROM resources WHERE {UNDER_SET}
         ORDER BY kind, name LIMIT 1"
    );
    let first = db
        .query_row(&sql, [set], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, i64>(2)?,
            ))
        })
        .optional()?;
    match first {
        None => Ok(()),
        Some((kind, user, count)) => Err(CatalogError::InUse {
            name: set.into(),
            kind: parse_kind(&user, &kind)?,
            user,
            count,
        }),
    }
}

impl DiskState {
    fn text(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Deleting => "deleting",
            Self::Erased => "erased",
        }
    }
}

pub(super) fn parse(row: &Row<'_>) -> Result<Stored<DiskRecord>, CatalogError> {
    let name: String = row.get("name")?;
    let size: i64 = row.get("size")?;
    let state = match row.get::<_, String>("state")?.as_str() {
        "creating" => DiskState::Creating,
        "ready" => DiskState::Ready,
        "deleting" => DiskState::Deleting,
        "erased" => DiskState::Erased,
        other => return Err(damaged(&name, format!("state '{other}'"))),
    };
    Ok(Stored {
        rev: Rev(row.get("rev")?),
        record: DiskRecord {
            id: uuid(&name, &row.get::<_, String>("id")?)?,
            kind: parse_kind(&name, &row.get::<_, String>("kind")?)?,
            directory: OsString::from_vec(row.get("directory")?).into(),
            size: u64::try_from(size).map_err(|_| damaged(&name, format!("size {size}")))?,
            disk_encryption_set: row.get("des")?,
            key_url: row.get("key_url")?,
            layers: parse_json(&name, "layers", &row.get::<_, String>("layers")?)?,
            created: parse_time(&name, &row.get::<_, String>("created")?)?,
            state,
            name,
        },
    })
}

/// Says what a violated constraint means.
fn violated(error: rusqlite::Error, record: &DiskRecord, des: Option<&str>) -> CatalogError {
    constraint(error, record.kind.into(), &record.name, des)
}

fn size(record: &DiskRecord) -> Result<i64, CatalogError> {
    i64::try_from(record.size)
        .map_err(|_| damaged(&record.name, format!("size {} is too large", record.size)))
}
