//! Identities in the catalog's database: named users, and the system-assigned ones of disk encryption
//! sets, which go with their set.

use database::{Connection, Database, Mode, Row, Transaction, params};
use time::OffsetDateTime;
use uuid::Uuid;

use super::columns::{
    constraint, damaged, missing, optional_time_text, parse_json, parse_time, stale, time_text,
    uuid,
};
use super::{
    CatalogError, Change, DesIdentity, IdentityOwner, IdentityRecord, Kind, Rev, Stored, lock_rows,
};

/// The step of the catalog's schema that adds the table. The secret of an identity is stored as its
/// SHA-256: it is 256 random bits, so that there is nothing to guess. That a set's identity goes
/// with the set is the database's own doing, so no command can forget it.
pub(super) const TABLE: &str = "
CREATE TABLE identities (
    object_id   TEXT PRIMARY KEY,
    rev         INTEGER NOT NULL,
    client_id   TEXT NOT NULL UNIQUE,
    name        TEXT UNIQUE,
    des         TEXT UNIQUE REFERENCES disk_encryption_sets (name) ON DELETE CASCADE,
    secret_hash BLOB,
    created     TEXT NOT NULL,
    CHECK ((name IS NULL) <> (des IS NULL))
) STRICT;
";

/// The step for applications, whose secrets end.
pub(super) const APPLICATIONS: &str = "
ALTER TABLE identities ADD COLUMN secret_ends TEXT;
ALTER TABLE identities ADD COLUMN application INTEGER NOT NULL DEFAULT 0;
";

const COLUMNS: &str =
    "object_id, rev, client_id, name, des, secret_hash, secret_ends, application, created";

pub(super) fn insert(db: &Connection, record: &IdentityRecord) -> Result<(), CatalogError> {
    let (name, des) = match &record.owner {
        IdentityOwner::Named(name) => (Some(name), None),
        IdentityOwner::DiskEncryptionSet(set) => (None, Some(set)),
    };
    let shown = record.owner.name();
    db.execute(
        &format!("INSERT INTO identities ({COLUMNS}) VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?)"),
        params![
            record.object_id.to_string(),
            record.client_id.to_string(),
            name,
            des,
            record.secret_hash.as_ref().map(<[u8; 32]>::as_slice),
            optional_time_text(shown, record.secret_ends)?,
            record.is_application,
            time_text(shown, record.created)?,
        ],
    )
    .map_err(|e| constraint(e, Kind::Identity, shown, des.map(String::as_str)))?;
    Ok(())
}

pub(super) fn named(db: &Connection, name: &str) -> Result<Stored<IdentityRecord>, CatalogError> {
    one(db, "name", name)?.ok_or_else(|| missing(Kind::Identity, name))
}

pub(super) fn all(db: &Connection) -> Result<Vec<Stored<IdentityRecord>>, CatalogError> {
    let sql = format!("SELECT {COLUMNS} FROM identities ORDER BY des NULLS FIRST, name");
    db.select(&sql, &[], parse)
}

/// The identity of a set, made when it is asked for first; whether it was.
pub(super) fn of_des(
    db: &Transaction<'_>,
    des: &str,
) -> Result<(Stored<IdentityRecord>, bool), CatalogError> {
    let set = db.first(
        "SELECT identity, principal_id FROM disk_encryption_sets WHERE name = ?",
        params![des],
        |row| Ok::<(String, String), CatalogError>((row.get(0)?, row.get(1)?)),
    )?;
    let (identity, principal) = set.ok_or_else(|| missing(Kind::DiskEncryptionSet, des))?;
    // Tokens of any other identity are issued by somebody else.
    if parse_json::<DesIdentity>(des, "identity", &identity)? != DesIdentity::SystemAssigned {
        return Err(CatalogError::NotSystemAssigned { name: des.into() });
    }
    if let Some(found) = one(db, "des", des)? {
        return Ok((found, false));
    }
    let record = IdentityRecord {
        object_id: uuid(des, &principal)?,
        client_id: Uuid::new_v4(),
        owner: IdentityOwner::DiskEncryptionSet(des.into()),
        secret_hash: None,
        secret_ends: None,
        is_application: false,
        created: OffsetDateTime::now_utc(),
    };
    insert(db, &record)?;
    let made = Stored {
        rev: Rev(1),
        record,
    };
    Ok((made, true))
}

pub(super) fn by_object(
    db: &Connection,
    object_id: Uuid,
) -> Result<Option<IdentityRecord>, CatalogError> {
    Ok(one(db, "object_id", &object_id.to_string())?.map(|found| found.record))
}

pub(super) fn by_client(
    db: &Connection,
    client_id: Uuid,
) -> Result<Option<IdentityRecord>, CatalogError> {
    Ok(one(db, "client_id", &client_id.to_string())?.map(|found| found.record))
}

pub(super) fn set_secret(
    db: &Connection,
    identity: &Stored<IdentityRecord>,
    hash: Option<&[u8; 32]>,
    ends: Option<OffsetDateTime>,
) -> Result<(), CatalogError> {
    let record = &identity.record;
    let changed = db.execute(
        "UPDATE identities SET rev = rev + 1, secret_hash = ?, secret_ends = ? \
         WHERE object_id = ? AND rev = ?",
        params![
            hash.map(<[u8; 32]>::as_slice),
            optional_time_text(record.owner.name(), ends)?,
            record.object_id.to_string(),
            identity.rev.0
        ],
    )?;
    changed_one(changed, record)
}

/// Deletes an identity that is that of no set.
pub(super) fn delete(db: &Database, identity: &Stored<IdentityRecord>) -> Result<(), CatalogError> {
    let record = &identity.record;
    let id = record.object_id.to_string();
    db.transaction(Mode::Write, |db| {
        if let IdentityOwner::Named(name) = &record.owner {
            lock_rows::refuse(db, Kind::Identity, name, Change::Delete)?;
        }
        let user = db.value(
            "SELECT name FROM disk_encryption_sets WHERE identity ->> 'objectId' = ? \
             ORDER BY name LIMIT 1",
            params![id],
        )?;
        if let Some(set) = user {
            let name = record.owner.to_string();
            return Err(CatalogError::IdentityInUse { name, set });
        }
        let changed = db.execute(
            "DELETE FROM identities WHERE object_id = ? AND rev = ?",
            params![id, identity.rev.0],
        )?;
        changed_one(changed, record)
    })
}

/// Refuses a set whose identity is that of a user who is not there.
pub(super) fn check_user_assigned(
    db: &Connection,
    identity: &DesIdentity,
) -> Result<(), CatalogError> {
    let DesIdentity::UserAssigned { object_id, .. } = identity else {
        return Ok(());
    };
    match by_object(db, *object_id)? {
        Some(_) => Ok(()),
        None => Err(missing(Kind::Identity, &object_id.to_string())),
    }
}

fn changed_one(changed: u64, record: &IdentityRecord) -> Result<(), CatalogError> {
    match changed {
        0 => Err(stale(Kind::Identity, record.owner.name())),
        _ => Ok(()),
    }
}

/// `column` is a column of this file's own choice that is unique.
fn one(
    db: &Connection,
    column: &'static str,
    value: &str,
) -> Result<Option<Stored<IdentityRecord>>, CatalogError> {
    let sql = format!("SELECT {COLUMNS} FROM identities WHERE {column} = ?");
    db.first(&sql, params![value], parse)
}

fn parse(row: &Row) -> Result<Stored<IdentityRecord>, CatalogError> {
    let object_id: String = row.get("object_id")?;
    let owner = match (row.get("name")?, row.get("des")?) {
        (Some(name), None) => IdentityOwner::Named(name),
        (None, Some(des)) => IdentityOwner::DiskEncryptionSet(des),
        _ => return Err(damaged(&object_id, "an identity with two owners or none")),
    };
    let name = owner.name();
    let secret_hash: Option<Vec<u8>> = row.get("secret_hash")?;
    let secret_ends: Option<String> = row.get("secret_ends")?;
    Ok(Stored {
        rev: Rev(row.get("rev")?),
        record: IdentityRecord {
            object_id: uuid(name, &object_id)?,
            client_id: uuid(name, row.text("client_id")?)?,
            secret_hash: secret_hash
                .map(|hash| hash.try_into().map_err(|_| damaged(name, "secret_hash")))
                .transpose()?,
            secret_ends: secret_ends
                .map(|ends| parse_time(name, &ends))
                .transpose()?,
            is_application: row.get("application")?,
            created: parse_time(name, row.text("created")?)?,
            owner,
        },
    })
}
