//! What the catalog has no row of any more although its header may still exist: the key versions that
//! wrap it must not be called safe to disable because of that.
//!
//! A record is made in the transaction that deletes the row, and goes in the one that adds a row with the
//! same id and directory again, or when the operator says that the thing is gone for good. With another
//! directory that row may be a copy's: the record goes when no header is left where it was.

use database::{Connection, Row, params};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::columns::{json, parse_json, parse_kind, parse_time, time_text, uuid};
use super::{CatalogError, DiskRecord, DiskState};
use crate::envelope::ResourceKind;
use vault::same_key_url;

/// The table.
pub(super) const TABLE: &str = "
CREATE TABLE departed (
    id        TEXT PRIMARY KEY,
    kind      TEXT NOT NULL,
    name      TEXT NOT NULL,
    directory TEXT NOT NULL,
    keys      TEXT NOT NULL,
    reason    TEXT NOT NULL,
    time      TEXT NOT NULL
) STRICT;
";

/// Why the catalog does not have it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Departure {
    /// It was unregistered: its files stayed where they were.
    Unregistered,
    /// It was unregistered, and its header was not there to be read.
    UnregisteredUnseen,
    /// It was deleted, but its header was not there to be erased.
    DeletedUnseen,
    /// A vault has a use of it on record, and it was not found when a lost catalog was made again.
    NotFound,
}

/// A key version that wraps one or more of its layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DepartedKey {
    /// The set in whose name; `None` is the platform-managed key, or not known.
    pub disk_encryption_set: Option<String>,
    /// URL of the key, with its version.
    pub key_url: String,
}

/// A disk, a snapshot or an image of which there is no row any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DepartedRecord {
    /// Its unique id; one of this record alone for [`Departure::NotFound`].
    pub id: Uuid,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: ResourceKind,
    /// The name that it had.
    pub name: String,
    /// Where its header was, for a person; empty where that is not known.
    pub directory: String,
    /// The key versions that wrap its layers, by its header and by the catalog.
    pub keys: Vec<DepartedKey>,
    /// Why there is no row.
    pub reason: Departure,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
}

impl DepartedRecord {
    /// Of what has that row now; `header` is the same as its header describes it, where that can be read:
    /// the row may be behind it.
    pub fn new(row: &DiskRecord, header: Option<&DiskRecord>, reason: Departure) -> Self {
        let mut keys: Vec<DepartedKey> = Vec::new();
        for record in std::iter::once(row).chain(header) {
            let own = (&record.disk_encryption_set, &record.key_url);
            let layers = record.layers.iter();
            let layers = layers.map(|layer| (&layer.disk_encryption_set, &layer.key_url));
            for (set, key_url) in std::iter::once(own).chain(layers) {
                let key = DepartedKey {
                    disk_encryption_set: set.clone(),
                    key_url: key_url.clone(),
                };
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
        Self {
            id: row.id,
            kind: row.kind,
            name: row.name.clone(),
            directory: row.directory.to_string_lossy().into_owned(),
            keys,
            reason,
            time: OffsetDateTime::now_utc(),
        }
    }
}

impl Departure {
    /// Whether the header was not read, which may have been ahead of the catalog.
    pub fn is_unseen(self) -> bool {
        matches!(self, Self::UnregisteredUnseen | Self::DeletedUnseen)
    }

    fn text(self) -> &'static str {
        match self {
            Self::Unregistered => "unregistered",
            Self::UnregisteredUnseen => "unregisteredUnseen",
            Self::DeletedUnseen => "deletedUnseen",
            Self::NotFound => "notFound",
        }
    }
}

pub(super) const SELECT: &str =
    "SELECT id, kind, name, directory, keys, reason, time FROM departed";

pub(super) fn insert(db: &Connection, record: &DepartedRecord) -> Result<(), CatalogError> {
    let name = &record.name;
    db.execute(
        "INSERT INTO departed VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE \
         SET kind = excluded.kind, name = excluded.name, directory = excluded.directory, \
         keys = excluded.keys, reason = excluded.reason, time = excluded.time",
        params![
            record.id.to_string(),
            record.kind.as_str(),
            name,
            record.directory,
            json(name, &record.keys)?,
            record.reason.text(),
            time_text(name, record.time)?,
        ],
    )?;
    Ok(())
}

/// Forgets what there is a row of again, in the same directory; whether there was something to forget. That
/// which was not found is known by its name only, and a new one of that name is another one. So is one that is not under
/// all the keys which that one has used: it may be the same one, rotated since, and that is not known.
pub(super) fn returned(db: &Connection, record: &DiskRecord) -> Result<bool, CatalogError> {
    let mut deleted = db.execute(
        "DELETE FROM departed WHERE id = ? AND directory = ?",
        params![record.id.to_string(), record.directory.to_string_lossy()],
    )?;
    if record.state != DiskState::Creating {
        for found in not_found(db, record)? {
            let mut keys = found.keys.iter();
            if keys.all(|key| is_under(record, &key.key_url)) {
                deleted += u64::from(delete(db, found.id)?);
            }
        }
    }
    Ok(deleted > 0)
}

/// What was not found and has the kind and the name of `record`.
fn not_found(db: &Connection, record: &DiskRecord) -> Result<Vec<DepartedRecord>, CatalogError> {
    let sql = format!("{SELECT} WHERE reason = ? AND kind = ? AND name = ?");
    let reason = Departure::NotFound.text();
    db.select(
        &sql,
        params![reason, record.kind.as_str(), record.name],
        parse,
    )
}

fn is_under(record: &DiskRecord, key_url: &str) -> bool {
    let layers = record.layers.iter().map(|layer| &layer.key_url);
    let mut keys = layers.chain([&record.key_url]);
    keys.any(|url| same_key_url(url, key_url))
}

/// Forgets one; whether there was one.
pub(super) fn delete(db: &Connection, id: Uuid) -> Result<bool, CatalogError> {
    let deleted = db.execute("DELETE FROM departed WHERE id = ?", params![id.to_string()])?;
    Ok(deleted > 0)
}

pub(super) fn parse(row: &Row) -> Result<DepartedRecord, CatalogError> {
    let name: String = row.get("name")?;
    Ok(DepartedRecord {
        id: uuid(&name, row.text("id")?)?,
        kind: parse_kind(&name, row.text("kind")?)?,
        directory: row.get("directory")?,
        keys: parse_json(&name, "keys", row.text("keys")?)?,
        reason: match row.text("reason")? {
            "unregistered" => Departure::Unregistered,
            "unregisteredUnseen" => Departure::UnregisteredUnseen,
            // Whatever it is, it is not known to be gone.
            "notFound" => Departure::NotFound,
            _ => Departure::DeletedUnseen,
        },
        time: parse_time(&name, row.text("time")?)?,
        name,
    })
}
