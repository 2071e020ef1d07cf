//! The vault itself: its schema, its row, its policies and its sealed keys.

use rusqlite::{Connection, OptionalExtension, ffi, params};
use time::OffsetDateTime;
use uuid::Uuid;

use super::columns::{text, time, uuid};
use crate::audit::{self, AuditRecord, Event};
use crate::{MasterSource, NetworkRules, Permissions, VaultError, VaultErrorCode, VaultSettings};
use database::sqlite::Schema;

/// Private keys are the only secrets in it, and they are sealed under the master key
/// (`sealed` = nonce ‖ ciphertext ‖ tag). A version's `seq` orders versions: the latest of a key
/// is the one that was made last. A deleted key keeps its versions and its name; `deleted_keys`
/// hides them. The audit log is only ever appended to. `key_uses` says who has used a key version
/// when, in the transaction of each record, and stays when records are archived; `due_retries` when
/// what is due and failed is tried again.
pub(crate) const SCHEMA: Schema = Schema {
    what: "key vault",
    application_id: 0x5EA1_0BA7,
    steps: &[
        |db| db.execute_batch(include_str!("version-1.sql")),
        |db| {
            db.execute_batch(include_str!("version-2.sql"))?;
            db.execute_batch(audit::TABLES)
        },
        |db| db.execute_batch(include_str!("version-3.sql")),
        |db| {
            refuse_names_that_differ_in_case(db)?;
            db.execute_batch(include_str!("version-4.sql"))
        },
        |db| db.execute_batch(include_str!("version-5.sql")),
        |db| {
            db.execute_batch(include_str!("version-6.sql"))?;
            let mut tables = audit::TABLES_2.iter();
            tables.try_for_each(|table| db.execute_batch(table))
        },
        |db| db.execute_batch(audit::TABLES_3),
        // From where the vault may be asked; without rules, from everywhere.
        |db| db.execute_batch("ALTER TABLE vault ADD COLUMN network TEXT"),
        // Since when the vault may lack what was in it before.
        |db| db.execute_batch("ALTER TABLE vault ADD COLUMN incomplete TEXT"),
    ],
};

/// Two keys whose names differ in case only would be one from version 4 on. Which of them is meant then
/// nobody can say, so the file stays as it is.
fn refuse_names_that_differ_in_case(db: &Connection) -> rusqlite::Result<()> {
    let sql = "SELECT min(name), max(name) FROM key_versions GROUP BY name COLLATE NOCASE \
               HAVING count(DISTINCT name) > 1 LIMIT 1";
    let names = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let found: Option<(String, String)> = db.query_row(sql, [], names).optional()?;
    match found {
        None => Ok(()),
        Some((one, other)) => Err(rusqlite::Error::SqliteFailure(
            ffi::Error::new(ffi::SQLITE_CONSTRAINT_UNIQUE),
            Some(format!(
                "the keys '{one}' and '{other}' differ in case only, and this version of sealdisk \
                 compares names of keys without case, as Azure does; move the disks of one of them \
                 to another key, then delete and purge it, with the version of sealdisk that made it"
            )),
        )),
    }
}

/// That a vault was deleted, and until when it can be recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VaultDeletion {
    /// When it was deleted.
    pub deleted: OffsetDateTime,
    /// When it is purged.
    pub scheduled_purge: OffsetDateTime,
}

/// What a vault says about itself.
pub(crate) struct VaultRow {
    pub id: Uuid,
    pub name: String,
    pub created: OffsetDateTime,
    pub master_check: Vec<u8>,
    pub settings: VaultSettings,
    /// Where the master key is; `None` where it was before there was a choice.
    pub master: Option<MasterSource>,
}

pub(crate) fn insert_vault(db: &Connection, vault: &VaultRow) -> Result<(), VaultError> {
    db.execute(
        "INSERT INTO vault (id, vault_id, name, created, master_check, retention_days, \
         purge_protection, master) VALUES (1, ?, ?, ?, ?, ?, ?, ?)",
        params![
            vault.id.to_string(),
            vault.name,
            text(vault.created)?,
            vault.master_check,
            vault.settings.retention_days,
            vault.settings.purge_protection,
            vault.master.as_ref().map(master_text).transpose()?,
        ],
    )?;
    Ok(())
}

/// `None` when the vault's making was cut off before the first row.
pub(crate) fn vault(db: &Connection) -> Result<Option<VaultRow>, VaultError> {
    let sql = "SELECT vault_id, name, created, master_check, retention_days, purge_protection, \
               master FROM vault";
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
        settings: VaultSettings {
            retention_days: row.get(4)?,
            purge_protection: row.get(5)?,
        },
        master: row
            .get::<_, Option<String>>(6)?
            .map(|text| serde_json::from_str(&text).map_err(|_| damaged("the master key's place")))
            .transpose()?,
    }))
}

/// Whether the vault is deleted.
pub(crate) fn deletion(db: &Connection) -> Result<Option<VaultDeletion>, VaultError> {
    let found: Option<(Option<String>, Option<String>)> = db
        .prepare_cached("SELECT deleted, purge_at FROM vault")?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match found {
        Some((Some(deleted), Some(purge_at))) => Ok(Some(VaultDeletion {
            deleted: time(&deleted)?,
            scheduled_purge: time(&purge_at)?,
        })),
        _ => Ok(None),
    }
}

/// Writes whether the vault is deleted.
pub(crate) fn set_deletion(
    db: &Connection,
    deletion: Option<&VaultDeletion>,
) -> Result<(), VaultError> {
    let times = deletion
        .map(|d| Ok::<_, VaultError>((text(d.deleted)?, text(d.scheduled_purge)?)))
        .transpose()?;
    let (deleted, purge_at) = times.unzip();
    db.execute(
        "UPDATE vault SET deleted = ?, purge_at = ?",
        params![deleted, purge_at],
    )?;
    Ok(())
}

/// Since when the vault may lack keys and policies that it had.
pub(crate) fn incomplete(db: &Connection) -> Result<Option<OffsetDateTime>, VaultError> {
    let found: Option<Option<String>> = db
        .prepare_cached("SELECT incomplete FROM vault")?
        .query_row([], |row| row.get(0))
        .optional()?;
    found.flatten().map(|text| time(&text)).transpose()
}

/// Writes that.
pub(crate) fn set_incomplete(
    db: &Connection,
    since: Option<OffsetDateTime>,
) -> Result<(), VaultError> {
    let since = since.map(text).transpose()?;
    db.execute("UPDATE vault SET incomplete = ?", [since])?;
    Ok(())
}

/// Writes which master key the vault has, and where it is.
pub(crate) fn set_master(
    db: &Connection,
    check: &[u8],
    source: &MasterSource,
) -> Result<(), VaultError> {
    db.execute(
        "UPDATE vault SET master_check = ?, master = ?",
        params![check, master_text(source)?],
    )?;
    Ok(())
}

fn master_text(source: &MasterSource) -> Result<String, VaultError> {
    serde_json::to_string(source).map_err(|e| {
        let what = "the place of the master key cannot be stored";
        VaultError::caused(VaultErrorCode::BadParameter, what, e)
    })
}

fn damaged(what: &str) -> VaultError {
    VaultError::new(
        VaultErrorCode::Internal,
        format!("the key vault's database is damaged: {what}"),
    )
}

/// The private part of a version as it is stored.
pub(crate) fn sealed(
    db: &Connection,
    name: &str,
    version: &str,
) -> Result<Option<Vec<u8>>, VaultError> {
    let sql = "SELECT sealed FROM key_versions WHERE name = ? AND version = ?";
    let mut statement = db.prepare_cached(sql)?;
    Ok(statement
        .query_row([name, version], |row| row.get(0))
        .optional()?)
}

/// Replaces it.
pub(crate) fn set_sealed(db: &Connection, seq: i64, sealed: &[u8]) -> Result<(), VaultError> {
    db.execute(
        "UPDATE key_versions SET sealed = ? WHERE seq = ?",
        params![sealed, seq],
    )?;
    Ok(())
}

/// The keys of earlier backups, the newest first.
pub(crate) fn backup_keys(db: &Connection) -> Result<Vec<Vec<u8>>, VaultError> {
    let mut statement = db.prepare("SELECT sealed FROM backup_keys ORDER BY seq")?;
    let keys = statement.query_map([], |row| row.get(0))?;
    Ok(keys.collect::<Result<_, _>>()?)
}

pub(crate) fn add_backup_key(db: &Connection, sealed: &[u8]) -> Result<(), VaultError> {
    db.execute("INSERT INTO backup_keys (sealed) VALUES (?)", [sealed])?;
    Ok(())
}

pub(crate) fn clear_backup_keys(db: &Connection) -> Result<(), VaultError> {
    db.execute("DELETE FROM backup_keys", [])?;
    Ok(())
}

/// Whether any private key of the vault is in a token.
pub(crate) fn has_token_keys(db: &Connection) -> Result<bool, VaultError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM key_versions WHERE kty = 'RSA-HSM')";
    Ok(db.query_row(sql, [], |row| row.get(0))?)
}

/// The names of all keys, deleted ones too.
pub(crate) fn all_key_names(db: &Connection) -> Result<Vec<String>, VaultError> {
    let mut statement = db.prepare("SELECT DISTINCT name FROM key_versions ORDER BY name")?;
    let names = statement.query_map([], |row| row.get(0))?;
    Ok(names.collect::<Result<_, _>>()?)
}

/// Writes what the vault does with deleted keys.
pub(crate) fn update_vault(db: &Connection, settings: &VaultSettings) -> Result<(), VaultError> {
    db.execute(
        "UPDATE vault SET retention_days = ?, purge_protection = ?",
        params![settings.retention_days, settings.purge_protection],
    )?;
    Ok(())
}

/// From where the vault may be asked.
pub(crate) fn network_rules(db: &Connection) -> Result<NetworkRules, VaultError> {
    let sql = "SELECT network FROM vault";
    let text: Option<String> = db.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    match text {
        None => Ok(NetworkRules::default()),
        Some(text) => serde_json::from_str(&text).map_err(|_| damaged("the network rules")),
    }
}

/// Changes that.
pub(crate) fn set_network_rules(db: &Connection, rules: &NetworkRules) -> Result<(), VaultError> {
    let text = serde_json::to_string(rules).map_err(|e| {
        let what = "the network rules cannot be stored";
        VaultError::caused(VaultErrorCode::BadParameter, what, e)
    })?;
    db.execute("UPDATE vault SET network = ?", [text])?;
    Ok(())
}

/// How many records of one identity the vault takes in 10 seconds.
pub(crate) fn operations_limit(db: &Connection) -> Result<i64, VaultError> {
    let sql = "SELECT operations_limit FROM vault";
    Ok(db.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

/// Changes that.
pub(crate) fn set_operations_limit(db: &Connection, limit: u32) -> Result<(), VaultError> {
    db.execute("UPDATE vault SET operations_limit = ?", [limit])?;
    Ok(())
}

pub(crate) fn permissions(db: &Connection, object_id: Uuid) -> Result<Permissions, VaultError> {
    let sql = "SELECT permissions FROM access_policies WHERE object_id = ?";
    let found: Option<String> = db
        .prepare_cached(sql)?
        .query_row([object_id.to_string()], |row| row.get(0))
        .optional()?;
    found.as_deref().unwrap_or_default().parse()
}

/// All access policies, by object id.
pub(crate) fn policies(db: &Connection) -> Result<Vec<(Uuid, Permissions)>, VaultError> {
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
pub(crate) fn set_policy(
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
pub(crate) fn delete_policy(db: &Connection, object_id: Uuid) -> Result<bool, VaultError> {
    let sql = "DELETE FROM access_policies WHERE object_id = ?";
    Ok(db.execute(sql, [object_id.to_string()])? == 1)
}

/// Takes the audit log that a version 1 vault has left, the oldest line first.
pub(crate) fn take_unchained_audit(db: &Connection) -> Result<Vec<AuditRecord>, VaultError> {
    let sql = "SELECT time, caller, operation, key, version, detail, code FROM audit_unchained \
               ORDER BY seq";
    let mut records = Vec::new();
    let mut statement = db.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let time = time(&row.get::<_, String>(0)?)?;
        let event = Event {
            caller: uuid(&row.get::<_, String>(1)?)?.to_string(),
            origin: "unknown".into(),
            operation: row.get(2)?,
            key: row.get(3)?,
            version: row.get(4)?,
            disk: None,
            detail: row.get(5)?,
            code: row.get(6)?,
        };
        records.push(AuditRecord { time, event });
    }
    drop(rows);
    drop(statement);
    db.execute_batch("DROP TABLE audit_unchained")?;
    Ok(records)
}
