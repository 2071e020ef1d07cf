//! The table of disks, snapshots and images, and that of the layers that they have.

use std::ffi::OsString;
use std::iter::{once, repeat};
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use database::{Connection, Database, Mode, Row, ToValue, Transaction, Value, params};
use uuid::Uuid;

use super::columns::{
    constraint, damaged, missing, parse_kind, parse_time, stale, time_text, uuid,
};
use super::{
    CatalogError, Change, DepartedRecord, DiskRecord, DiskState, LayerUse, Rev, Stored, departed,
    lock_rows,
};
use crate::envelope::ResourceKind;
use crate::host::this_host_id;

/// What is under a set, by itself or by a layer.
const UNDER_SET: &str = "resources.id IN (SELECT id FROM resources WHERE des = ?1
    UNION SELECT resource FROM layer_uses WHERE des = ?1)";
/// What is under the platform-managed key, by itself or by a layer.
const UNDER_PLATFORM: &str = "resources.id IN (SELECT id FROM resources WHERE des IS NULL
    UNION SELECT resource FROM layer_uses WHERE des IS NULL)";

/// The rows of what is being made or deleted, or was cut off in that. They are looked for before anything is made, and
/// are few among thousands.
pub(super) const UNFINISHED: &str =
    "resources.id IN (SELECT id FROM resources WHERE state <> 'ready')";
/// An index of them alone. It is taken for a query with the same condition.
pub(super) const UNFINISHED_INDEX: &str =
    "CREATE INDEX resources_unfinished ON resources (kind, name) WHERE state <> 'ready';";
/// For so many names there is one statement, whatever their number is.
const NAMES: usize = 32;

/// The rows of a kind that have one of [`NAMES`] names, each of which is looked up.
pub(super) fn named_condition() -> String {
    format!("kind = ? AND name IN (?{})", ", ?".repeat(NAMES - 1))
}

/// A query for the rows that meet a condition: a row of the answer for each layer, from the bottom up, and one for what
/// has none.
pub(super) fn select(condition: &str) -> String {
    format!(
        "SELECT resources.id AS id, rev, kind, name, directory, size, resources.des AS des,
             resources.key_url AS key_url, created, state,
             layer, uses.des AS layer_des, uses.key_url AS layer_key_url
         FROM resources LEFT JOIN layer_uses AS uses ON uses.resource = resources.id
         WHERE {condition} ORDER BY kind, name, place"
    )
}

/// What meets a condition, by kind and name.
pub(super) fn find(
    db: &Connection,
    condition: &str,
    values: &[Value<'_>],
) -> Result<Vec<Stored<DiskRecord>>, CatalogError> {
    let mut found: Vec<Stored<DiskRecord>> = Vec::new();
    let mut last = String::new();
    db.visit(&select(condition), values, |row| {
        let id = row.text(0)?;
        if id != last {
            last = id.into();
            found.push(parse(&row)?);
        }
        if let Some(resource) = found.last_mut() {
            let layer = parse_layer(&row, &resource.record.name)?;
            resource.record.layers.extend(layer);
        }
        Ok::<_, CatalogError>(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// What has one of these names among those of a kind, by name.
pub(super) fn named(
    db: &Database,
    kind: ResourceKind,
    names: &[&str],
) -> Result<Vec<Stored<DiskRecord>>, CatalogError> {
    let mut names = names.to_vec();
    names.sort_unstable();
    names.dedup();
    let find_all = |db: &Connection| {
        let mut found = Vec::new();
        for names in names.chunks(NAMES) {
            // The last one stands for those that are missing.
            let last = repeat(names.last()).flatten();
            let names = names.iter().chain(last).take(NAMES);
            let kind = kind.as_str();
            let values: Vec<_> = once(&kind).chain(names).map(ToValue::to_value).collect();
            found.append(&mut find(db, &named_condition(), &values)?);
        }
        Ok(found)
    };
    match names.len() <= NAMES {
        true => find_all(db),
        // What several statements find is of one moment, too.
        false => db.transaction(Mode::Read, |db| find_all(db)),
    }
}

/// What has one of these ids, by kind and name.
pub(super) fn with_ids(
    db: &Connection,
    ids: &[Uuid],
) -> Result<Vec<Stored<DiskRecord>>, CatalogError> {
    let condition = format!("resources.id IN (?{})", ", ?".repeat(NAMES - 1));
    let mut found = Vec::new();
    for ids in ids.chunks(NAMES) {
        // The last one stands for those that are missing.
        let last = repeat(ids.last()).flatten();
        let ids: Vec<String> = ids
            .iter()
            .chain(last)
            .take(NAMES)
            .map(Uuid::to_string)
            .collect();
        let values: Vec<_> = ids.iter().map(ToValue::to_value).collect();
        found.append(&mut find(db, &condition, &values)?);
    }
    found.sort_by(|one, other| {
        let of = |row: &Stored<DiskRecord>| (row.record.kind.as_str(), row.record.name.clone());
        of(one).cmp(&of(other))
    });
    Ok(found)
}

/// What has a layer.
pub(super) fn with_layer(
    db: &Connection,
    layer: Uuid,
) -> Result<Vec<Stored<DiskRecord>>, CatalogError> {
    let condition = "resources.id IN (SELECT resource FROM layer_uses WHERE layer = ?)";
    find(db, condition, params![layer.to_string()])
}

/// What is under a set, or under the platform-managed key.
pub(super) fn under(
    db: &Connection,
    des: Option<&str>,
) -> Result<Vec<Stored<DiskRecord>>, CatalogError> {
    match des {
        Some(des) => find(db, UNDER_SET, params![des]),
        None => find(db, UNDER_PLATFORM, &[]),
    }
}

/// Also whether it was among the departed.
pub(super) fn insert(db: &Database, record: &DiskRecord) -> Result<(Rev, bool), CatalogError> {
    let name = &record.name;
    db.transaction(Mode::Write, |db| {
        let inserted = db.execute(
            "INSERT INTO resources VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                this_host_id(),
            ],
        );
        inserted.map_err(|e| violated(e, record, record.disk_encryption_set.as_deref()))?;
        insert_layers(db, record)?;
        Ok((Rev(1), departed::returned(db, record)?))
    })
}

pub(super) fn update(db: &Database, rev: Rev, record: &DiskRecord) -> Result<Rev, CatalogError> {
    let (name, id) = (&record.name, record.id.to_string());
    // From then on it is this host's to end what it has begun.
    let works_on = record.state != DiskState::Ready;
    db.transaction(Mode::Write, |db| {
        if record.state == DiskState::Deleting {
            refuse_locked(db, record)?;
        }
        let updated = db.execute(
            "UPDATE resources SET rev = rev + 1, name = ?, directory = ?, size = ?, des = ?, \
             key_url = ?, created = ?, state = ?, host = coalesce(?, host) WHERE id = ? AND rev = ?",
            params![
                name,
                record.directory.as_os_str().as_bytes(),
                size(record)?,
                record.disk_encryption_set,
                record.key_url,
                time_text(name, record.created)?,
                record.state.text(),
                works_on.then(this_host_id),
                id,
                rev.0,
            ],
        );
        let des = record.disk_encryption_set.as_deref();
        if updated.map_err(|e| violated(e, record, des))? == 0 {
            return Err(gone_or_stale(db, record)?);
        }
        db.execute("DELETE FROM layer_uses WHERE resource = ?", params![id])?;
        insert_layers(db, record)?;
        Ok(Rev(rev.0 + 1))
    })
}

fn insert_layers(db: &Transaction<'_>, record: &DiskRecord) -> Result<(), CatalogError> {
    let sql = "INSERT INTO layer_uses VALUES (?, ?, ?, ?, ?)";
    for (place, layer) in record.layers.iter().enumerate() {
        let LayerUse {
            layer,
            disk_encryption_set,
            key_url,
        } = layer;
        let inserted = db.execute(
            sql,
            params![
                record.id.to_string(),
                place as i64,
                layer.to_string(),
                disk_encryption_set,
                key_url,
            ],
        );
        inserted.map_err(|e| violated(e, record, disk_encryption_set.as_deref()))?;
    }
    Ok(())
}

/// Refuses to delete what a lock is on. What is being deleted already goes, and what never was whole.
fn refuse_locked(db: &Transaction<'_>, record: &DiskRecord) -> Result<(), CatalogError> {
    let id = record.id.to_string();
    let state: Option<String> =
        db.value("SELECT state FROM resources WHERE id = ?", params![id])?;
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
    db: &Database,
    rev: Rev,
    record: &DiskRecord,
    departed: &DepartedRecord,
) -> Result<(), CatalogError> {
    db.transaction(Mode::Write, |db| {
        delete(db, rev, record)?;
        departed::insert(db, departed)
    })
}

fn gone_or_stale(db: &Connection, record: &DiskRecord) -> Result<CatalogError, CatalogError> {
    let id = record.id.to_string();
    let there: Option<i64> = db.value("SELECT rev FROM resources WHERE id = ?", params![id])?;
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
    let in_use = db.first(&sql, params![set], |row| {
        let user: String = row.get(1)?;
        Ok::<_, CatalogError>(CatalogError::InUse {
            name: set.into(),
            kind: parse_kind(&user, row.text(0)?)?,
            user,
            count: row.get(2)?,
        })
    })?;
    in_use.map_or(Ok(()), Err)
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

/// A row, without its layers.
fn parse(row: &Row) -> Result<Stored<DiskRecord>, CatalogError> {
    let name: String = row.get("name")?;
    let size: i64 = row.get("size")?;
    let state = match row.text("state")? {
        "creating" => DiskState::Creating,
        "ready" => DiskState::Ready,
        "deleting" => DiskState::Deleting,
        "erased" => DiskState::Erased,
        other => return Err(damaged(&name, format!("state '{other}'"))),
    };
    Ok(Stored {
        rev: Rev(row.get("rev")?),
        record: DiskRecord {
            id: uuid(&name, row.text("id")?)?,
            kind: parse_kind(&name, row.text("kind")?)?,
            directory: OsString::from_vec(row.get("directory")?).into(),
            size: u64::try_from(size).map_err(|_| damaged(&name, format!("size {size}")))?,
            disk_encryption_set: row.get("des")?,
            key_url: row.get("key_url")?,
            layers: Vec::new(),
            created: parse_time(&name, row.text("created")?)?,
            state,
            name,
        },
    })
}

fn parse_layer(row: &Row, name: &str) -> Result<Option<LayerUse>, CatalogError> {
    let Some(layer) = row.get::<Option<String>>("layer")? else {
        return Ok(None);
    };
    Ok(Some(LayerUse {
        layer: uuid(name, &layer)?,
        disk_encryption_set: row.get("layer_des")?,
        key_url: row.get("layer_key_url")?,
    }))
}

/// Says what a violated constraint means.
fn violated(error: database::Error, record: &DiskRecord, des: Option<&str>) -> CatalogError {
    constraint(error, record.kind.into(), &record.name, des)
}

fn size(record: &DiskRecord) -> Result<i64, CatalogError> {
    i64::try_from(record.size)
        .map_err(|_| damaged(&record.name, format!("size {} is too large", record.size)))
}
