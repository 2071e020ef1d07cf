//! The database of an embedded vault: `vault.db`.

use rusqlite::{Connection, OptionalExtension, Row, params};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::{KeyId, Permissions, VaultError, VaultErrorCode};
use crate::sqlite::Schema;

/// Private keys are the only secrets in it, and they are sealed under the master key
/// (`sealed` = nonce ‖ ciphertext ‖ tag). A version's `seq` orders versions: the latest of a key
/// is the one that was made last. The audit log is only ever appended to.
pub(super) const SCHEMA: Schema = Schema {
    what: "key vault",
    application_id: 0x5EA1_0BA7,
    steps: &[|db| db.execute_batch(VERSION_1)],
};

const VERSION_1: &str = "
CREATE TABLE vault (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    vault_id     TEXT NOT NULL,
    name         TEXT NOT NULL,
    created      TEXT NOT NULL,
    master_check BLOB NOT NULL
) STRICT;
CREATE TABLE key_versions (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL,
    version    TEXT NOT NULL,
    rev        INTEGER NOT NULL,
    enabled    INTEGER NOT NULL,
    not_before TEXT,
    expires    TEXT,
    created    TEXT NOT NULL,
    updated    TEXT NOT NULL,
    n          BLOB NOT NULL,
    e          BLOB NOT NULL,
    sealed     BLOB NOT NULL,
    UNIQUE (name, version)
) STRICT;
CREATE TABLE access_policies (
    object_id   TEXT PRIMARY KEY,
    rev         INTEGER NOT NULL,
    permissions TEXT NOT NULL
) STRICT;
CREATE TABLE audit (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    time      TEXT NOT NULL,
    caller    TEXT NOT NULL,
    operation TEXT NOT NULL,
    key       TEXT,
    version   TEXT,
    detail    TEXT,
    outcome   TEXT NOT NULL CHECK (outcome IN ('allowed', 'refused')),
    code      TEXT
) STRICT;
";

/// What a vault says about itself.
pub(super) struct VaultRow {
    pub id: Uuid,
    pub name: String,
    pub created: OffsetDateTime,
    pub master_check: Vec<u8>,
}

/// One version of a key.
pub(super) struct KeyRow {
    pub name: String,
    pub version: String,
    pub rev: i64,
    pub enabled: bool,
    pub not_before: Option<OffsetDateTime>,
    pub expires: Option<OffsetDateTime>,
    pub created: OffsetDateTime,
    pub updated: OffsetDateTime,
    pub n: Vec<u8>,
    pub e: Vec<u8>,
    pub sealed: Vec<u8>,
}

const KEY_COLUMNS: &str =
    "name, version, rev, enabled, not_before, expires, created, updated, n, e, sealed";

/// The rest of a query for the latest version of every key.
const LATEST: &str = "seq IN (SELECT max(seq) FROM key_versions GROUP BY name)";

pub(super) fn insert_vault(db: &Connection, vault: &VaultRow) -> Result<(), VaultError> {
    db.execute(
        "INSERT INTO vault VALUES (1, ?, ?, ?, ?)",
        params![
            vault.id.to_string(),
            vault.name,
            text(vault.created)?,
            vault.master_check
        ],
    )?;
    Ok(())
}

/// `None` when the vault's making was cut off before the first row.
pub(super) fn vault(db: &Connection) -> Result<Option<VaultRow>, VaultError> {
    let sql = "SELECT vault_id, name, created, master_check FROM vault";
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    Ok(Some(VaultRow {
        id: uuid(&row.get::<_, String>(0)?)?,
        name: row.get(1)?,
        created: time(&row.get::<_, String>(2)?)?,
        master_check: row.get(3)?,
    }))
}

pub(super) fn insert_key(db: &Connection, key: &KeyRow) -> Result<(), VaultError> {
    db.execute(
        &format!("INSERT INTO key_versions ({KEY_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?)"),
        params![
            key.name,
            key.version,
            key.rev,
            key.enabled,
            key.not_before.map(text).transpose()?,
            key.expires.map(text).transpose()?,
            text(key.created)?,
            text(key.updated)?,
            key.n,
            key.e,
            key.sealed,
        ],
    )?;
    Ok(())
}

/// That version, or the latest.
pub(super) fn key(db: &Connection, id: &KeyId) -> Result<Option<KeyRow>, VaultError> {
    let sql = format!(
        "SELECT {KEY_COLUMNS} FROM key_versions WHERE name = ?1 AND (?2 IS NULL OR version = ?2) \
         ORDER BY seq DESC LIMIT 1"
    );
    Ok(select(db, &sql, params![id.name, id.version])?.pop())
}

/// The latest version of every key, by name.
pub(super) fn latest_keys(db: &Connection) -> Result<Vec<KeyRow>, VaultError> {
    let sql = format!("SELECT {KEY_COLUMNS} FROM key_versions WHERE {LATEST} ORDER BY name");
    select(db, &sql, [])
}

/// All versions of a key, the oldest first.
pub(super) fn key_versions(db: &Connection, name: &str) -> Result<Vec<KeyRow>, VaultError> {
    let sql = format!("SELECT {KEY_COLUMNS} FROM key_versions WHERE name = ? ORDER BY seq");
    select(db, &sql, [name])
}

/// Writes back the attributes of a version that was read at `key.rev`.
pub(super) fn update_key(db: &Connection, key: &KeyRow) -> Result<(), VaultError> {
    let changed = db.execute(
        "UPDATE key_versions SET rev = rev + 1, enabled = ?, not_before = ?, expires = ?, \
         updated = ? WHERE name = ? AND version = ? AND rev = ?",
        params![
            key.enabled,
            key.not_before.map(text).transpose()?,
            key.expires.map(text).transpose()?,
            text(key.updated)?,
            key.name,
            key.version,
            key.rev,
        ],
    )?;
    if changed == 0 {
        return Err(VaultError::new(
            VaultErrorCode::Conflict,
            format!(
                "the key '{}' was changed at the same time; try again",
                key.name
            ),
        ));
    }
    Ok(())
}

pub(super) fn permissions(db: &Connection, object_id: Uuid) -> Result<Permissions, VaultError> {
    let sql = "SELECT permissions FROM access_policies WHERE object_id = ?";
    let found: Option<String> = db
        .prepare_cached(sql)?
        .query_row([object_id.to_string()], |row| row.get(0))
        .optional()?;
    found.as_deref().unwrap_or_default().parse()
}

/// All access policies, by object id.
pub(super) fn policies(db: &Connection) -> Result<Vec<(Uuid, Permissions)>, VaultError> {
    let sql = "SELECT object_id, permissions FROM access_policies ORDER BY object_id";
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let permissions = row.get::<_, String>(1)?.parse()?;
        found.push((uuid(&row.get::<_, String>(0)?)?, permissions));
    }
    Ok(found)
}

/// Replaces what the identity may do.
pub(super) fn set_policy(
    db: &Connection,
    object_id: Uuid,
    permissions: &Permissions,
) -> Result<(), VaultError> {
    db.execute(
        "INSERT INTO access_policies (object_id, rev, permissions) VALUES (?1, 1, ?2) \
         ON CONFLICT DO UPDATE SET rev = rev + 1, permissions = ?2",
        params![object_id.to_string(), permissions.names().join(" ")],
    )?;
    Ok(())
}

/// Whether there was one.
pub(super) fn delete_policy(db: &Connection, object_id: Uuid) -> Result<bool, VaultError> {
    let sql = "DELETE FROM access_policies WHERE object_id = ?";
    Ok(db.execute(sql, [object_id.to_string()])? == 1)
}

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// When, in UTC.
    pub time: OffsetDateTime,
    /// The identity that asked.
    pub caller: Uuid,
    /// What it asked for, with the names of Azure's log: `KeyWrap`, `KeyUnwrap`, `KeyGet`, …
    pub operation: String,
    /// The key's name, where one is concerned.
    pub key: Option<String>,
    /// The version that was named or used.
    pub version: Option<String>,
    /// What exactly was to be changed, where something was.
    pub detail: Option<String>,
    /// `None` when it was allowed and done, else the code of the refusal.
    pub refusal: Option<String>,
}

pub(super) fn insert_audit(db: &Connection, record: &AuditRecord) -> Result<(), VaultError> {
    let outcome = match record.refusal {
        None => "allowed",
        Some(_) => "refused",
    };
    db.prepare_cached(
        "INSERT INTO audit (time, caller, operation, key, version, detail, outcome, code) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        text(record.time)?,
        record.caller.to_string(),
        record.operation,
        record.key,
        record.version,
        record.detail,
        outcome,
        record.refusal,
    ])?;
    Ok(())
}

/// The whole audit log, the oldest line first.
pub(super) fn audit(db: &Connection) -> Result<Vec<AuditRecord>, VaultError> {
    let sql = "SELECT time, caller, operation, key, version, detail, code FROM audit ORDER BY seq";
    let mut statement = db.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(AuditRecord {
            time: time(&row.get::<_, String>(0)?)?,
            caller: uuid(&row.get::<_, String>(1)?)?,
            operation: row.get(2)?,
            key: row.get(3)?,
            version: row.get(4)?,
            detail: row.get(5)?,
            refusal: row.get(6)?,
        });
    }
    Ok(found)
}

fn select(
    db: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<KeyRow>, VaultError> {
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query(parameters)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(key_row(row)?);
    }
    Ok(found)
}

fn key_row(row: &Row<'_>) -> Result<KeyRow, VaultError> {
    let optional_time = |column| -> Result<_, VaultError> {
        let text: Option<String> = row.get(column)?;
        text.as_deref().map(time).transpose()
    };
    Ok(KeyRow {
        name: row.get("name")?,
        version: row.get("version")?,
        rev: row.get("rev")?,
        enabled: row.get("enabled")?,
        not_before: optional_time("not_before")?,
        expires: optional_time("expires")?,
        created: time(&row.get::<_, String>("created")?)?,
        updated: time(&row.get::<_, String>("updated")?)?,
        n: row.get("n")?,
        e: row.get("e")?,
        sealed: row.get("sealed")?,
    })
}

fn text(time: OffsetDateTime) -> Result<String, VaultError> {
    time.format(&Rfc3339).map_err(|e| {
        VaultError::caused(VaultErrorCode::BadParameter, format!("the time {time}"), e)
    })
}

fn time(text: &str) -> Result<OffsetDateTime, VaultError> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|e| {
        let what = format!("the key vault's database is damaged: '{text}' is no time");
        VaultError::caused(VaultErrorCode::Internal, what, e)
    })
}

fn uuid(text: &str) -> Result<Uuid, VaultError> {
    Uuid::parse_str(text).map_err(|e| {
        let what = format!("the key vault's database is damaged: '{text}' is no id");
        VaultError::caused(VaultErrorCode::Internal, what, e)
    })
}
