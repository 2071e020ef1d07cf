//! Key versions and rotation policies.

use database::{Connection, Row, Value, params};
use time::OffsetDateTime;

use super::columns::{text, time};
use crate::rotation::RotationPolicy;
use crate::{KeyId, KeyOps, SeenKey, Tags, VaultError, VaultErrorCode, check_key_name};

/// One version of a key.
#[derive(Clone)]
pub(crate) struct KeyRow {
    pub seq: i64,
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
    pub kty: String,
    pub key_ops: KeyOps,
    pub tags: Tags,
}

impl KeyRow {
    /// Whether both are of one version, and of one private key.
    pub(crate) fn has_key_of(&self, other: &Self) -> bool {
        (&self.name, &self.version) == (&other.name, &other.version)
            && (&self.sealed, &self.n, &self.e) == (&other.sealed, &other.n, &other.e)
    }

    /// Whether nothing was changed between the two.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (self.seq, self.rev) == (other.seq, other.rev) && self.has_key_of(other)
    }
}

const COLUMNS: &str = "seq, name, version, rev, enabled, not_before, expires, created, updated, n, \
                       e, sealed, kty, key_ops, tags";

/// The rest of a query for keys that are not deleted.
const LIVE: &str = "name NOT IN (SELECT name FROM deleted_keys)";

/// The rest of a query for the latest version of every key.
const LATEST: &str = "seq IN (SELECT max(seq) FROM key_versions GROUP BY name)";

/// Adds a version; `key.seq` is not looked at.
pub(crate) fn insert_key(db: &Connection, key: &KeyRow) -> Result<(), VaultError> {
    db.execute(
        "INSERT INTO key_versions (name, version, rev, enabled, not_before, expires, created, \
         updated, n, e, sealed, kty, key_ops, tags) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        params![
            key.name,
            key.version,
            key.rev,
            key.enabled,
            key.not_before.map(text).transpose()?,
            key.expires.map(text).transpose()?,
            text(key.created)?,
            text(key.updated)?,
            key.n.as_slice(),
            key.e.as_slice(),
            key.sealed.as_slice(),
            key.kty,
            key.key_ops.to_string(),
            tags_text(&key.tags)?,
        ],
    )?;
    Ok(())
}

/// That version, or the latest, of a key that is not deleted. What no key is called is not looked for: PostgreSQL takes
/// letters that look alike for the same, and refuses others.
pub(crate) fn key(db: &Connection, id: &KeyId) -> Result<Option<KeyRow>, VaultError> {
    if check_key_name(&id.name).is_err() {
        return Ok(None);
    }
    let sql = format!(
        "SELECT {COLUMNS} FROM key_versions WHERE name = ?1 AND (version = ?2 OR ?2 IS NULL) \
         AND {LIVE} ORDER BY seq DESC LIMIT 1"
    );
    db.first(&sql, params![id.name, id.version], key_row)
}

/// The latest version of at most `max` keys behind the name `after`, by name.
pub(crate) fn latest_keys(
    db: &Connection,
    after: &str,
    max: usize,
) -> Result<Vec<KeyRow>, VaultError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM key_versions WHERE {LATEST} AND {LIVE} AND name > ? ORDER BY name \
         LIMIT ?"
    );
    select(db, &sql, params![after, limit(max)])
}

/// At most `max` versions of a key, deleted or not, behind the one with number `after`, the oldest
/// first.
pub(crate) fn key_versions(
    db: &Connection,
    name: &str,
    after: i64,
    max: usize,
) -> Result<Vec<KeyRow>, VaultError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM key_versions WHERE name = ? AND seq > ? ORDER BY seq LIMIT ?"
    );
    select(db, &sql, params![name, after, limit(max)])
}

/// What is seen of all key versions, by name, the oldest first.
pub(crate) fn seen_versions(db: &Connection) -> Result<Vec<SeenKey>, VaultError> {
    let sql = format!(
        "SELECT name, version, enabled, not_before, expires, created, {LATEST} AS latest, \
         NOT ({LIVE}) AS deleted FROM key_versions ORDER BY name, seq"
    );
    db.select(&sql, &[], |row| {
        Ok(SeenKey {
            name: row.get("name")?,
            version: row.get("version")?,
            enabled: row.get("enabled")?,
            not_before: optional_time(row, "not_before")?,
            expires: optional_time(row, "expires")?,
            created: time(row.text("created")?)?,
            is_latest: row.get("latest")?,
            is_deleted: row.get("deleted")?,
        })
    })
}

/// The latest version of a key, deleted or not.
pub(crate) fn latest_version(db: &Connection, name: &str) -> Result<Option<KeyRow>, VaultError> {
    let sql =
        format!("SELECT {COLUMNS} FROM key_versions WHERE name = ? ORDER BY seq DESC LIMIT 1");
    db.first(&sql, params![name], key_row)
}

/// Writes back what may change of a version that was read at `key.rev`.
pub(crate) fn update_key(db: &Connection, key: &KeyRow) -> Result<(), VaultError> {
    let changed = db.execute(
        "UPDATE key_versions SET rev = rev + 1, enabled = ?, not_before = ?, expires = ?, \
         updated = ?, key_ops = ?, tags = ? WHERE name = ? AND version = ? AND rev = ?",
        params![
            key.enabled,
            key.not_before.map(text).transpose()?,
            key.expires.map(text).transpose()?,
            text(key.updated)?,
            key.key_ops.to_string(),
            tags_text(&key.tags)?,
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

/// Removes every version of a key, its rotation policy and who has used it.
pub(crate) fn erase_key(db: &Connection, name: &str) -> Result<(), VaultError> {
    db.execute("DELETE FROM key_versions WHERE name = ?", params![name])?;
    db.execute(
        "DELETE FROM rotation_policies WHERE name = ?",
        params![name],
    )?;
    super::uses::erase_uses(db, name)
}

/// The rotation policy of a key, where it was given one.
pub(crate) fn rotation_policy(
    db: &Connection,
    name: &str,
) -> Result<Option<RotationPolicy>, VaultError> {
    let sql = "SELECT policy FROM rotation_policies WHERE name = ?";
    db.first(sql, params![name], |row| parse_policy(row.text(0)?))
}

/// The rotation policies of all keys that are not deleted.
pub(crate) fn rotation_policies(
    db: &Connection,
) -> Result<Vec<(String, RotationPolicy)>, VaultError> {
    let sql = format!("SELECT name, policy FROM rotation_policies WHERE {LIVE} ORDER BY name");
    db.select(&sql, &[], |row| {
        Ok((row.get(0)?, parse_policy(row.text(1)?)?))
    })
}

/// Replaces a key's rotation policy.
pub(crate) fn set_rotation_policy(
    db: &Connection,
    name: &str,
    policy: &RotationPolicy,
) -> Result<(), VaultError> {
    let text = serde_json::to_string(policy).map_err(unstorable)?;
    let sql = "INSERT INTO rotation_policies (name, policy) VALUES (?, ?) \
               ON CONFLICT (name) DO UPDATE SET name = excluded.name, policy = excluded.policy";
    db.execute(sql, params![name, text])?;
    Ok(())
}

fn parse_policy(text: &str) -> Result<RotationPolicy, VaultError> {
    serde_json::from_str(text).map_err(|e| {
        let what = "the key vault's database is damaged: a rotation policy is none";
        VaultError::caused(VaultErrorCode::Internal, what, e)
    })
}

fn tags_text(tags: &Tags) -> Result<String, VaultError> {
    serde_json::to_string(tags).map_err(unstorable)
}

fn unstorable(source: serde_json::Error) -> VaultError {
    VaultError::caused(VaultErrorCode::Internal, "it cannot be stored", source)
}

/// The integers of databases are signed.
fn limit(max: usize) -> i64 {
    i64::try_from(max).unwrap_or(i64::MAX)
}

fn select(db: &Connection, sql: &str, values: &[Value<'_>]) -> Result<Vec<KeyRow>, VaultError> {
    db.select(sql, values, key_row)
}

fn optional_time(row: &Row, column: &str) -> Result<Option<OffsetDateTime>, VaultError> {
    let text: Option<String> = row.get(column)?;
    text.as_deref().map(time).transpose()
}

fn key_row(row: &Row) -> Result<KeyRow, VaultError> {
    Ok(KeyRow {
        seq: row.get("seq")?,
        name: row.get("name")?,
        version: row.get("version")?,
        rev: row.get("rev")?,
        enabled: row.get("enabled")?,
        not_before: optional_time(row, "not_before")?,
        expires: optional_time(row, "expires")?,
        created: time(row.text("created")?)?,
        updated: time(row.text("updated")?)?,
        n: row.get("n")?,
        e: row.get("e")?,
        sealed: row.get("sealed")?,
        kty: row.get("kty")?,
        key_ops: row.text("key_ops")?.parse()?,
        tags: serde_json::from_str(row.text("tags")?).map_err(|e| {
            let what = "the key vault's database is damaged: a key's tags are none";
            VaultError::caused(VaultErrorCode::Internal, what, e)
        })?,
    })
}
