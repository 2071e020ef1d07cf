//! The vault itself: its row, its policies and its sealed keys.

use database::{Connection, params};
use time::OffsetDateTime;
use uuid::Uuid;

use super::columns::{small, text, time, uuid};
use crate::audit::{AuditRecord, Event};
use crate::{MasterSource, NetworkRules, Permissions, VaultError, VaultErrorCode, VaultSettings};

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
            vault.master_check.as_slice(),
            i64::from(vault.settings.retention_days),
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
    db.first(sql, &[], |row| {
        let master: Option<String> = row.get(6)?;
        Ok(VaultRow {
            id: uuid(row.text(0)?)?,
            name: row.get(1)?,
            created: time(row.text(2)?)?,
            master_check: row.get(3)?,
            settings: VaultSettings {
                retention_days: small(row.get(4)?)?,
                purge_protection: row.get(5)?,
            },
            master: master
                .map(|text| {
                    serde_json::from_str(&text).map_err(|_| damaged("the master key's place"))
                })
                .transpose()?,
        })
    })
}

/// Whether the vault is deleted.
pub(crate) fn deletion(db: &Connection) -> Result<Option<VaultDeletion>, VaultError> {
    let sql = "SELECT deleted, purge_at FROM vault";
    let found = db.first(sql, &[], |row| {
        let times: (Option<String>, Option<String>) = (row.get(0)?, row.get(1)?);
        Ok::<_, VaultError>(times)
    })?;
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
    let found: Option<Option<String>> = db.value("SELECT incomplete FROM vault", &[])?;
    found.flatten().map(|text| time(&text)).transpose()
}

/// Writes that.
pub(crate) fn set_incomplete(
    db: &Connection,
    since: Option<OffsetDateTime>,
) -> Result<(), VaultError> {
    let since = since.map(text).transpose()?;
    db.execute("UPDATE vault SET incomplete = ?", params![since])?;
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
    Ok(db.value(sql, params![name, version])?)
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
    let sql = "SELECT sealed FROM backup_keys ORDER BY seq";
    db.select(sql, &[], |row| Ok(row.get(0)?))
}

pub(crate) fn add_backup_key(db: &Connection, sealed: &[u8]) -> Result<(), VaultError> {
    let sql = "INSERT INTO backup_keys (sealed) VALUES (?)";
    db.execute(sql, params![sealed])?;
    Ok(())
}

pub(crate) fn clear_backup_keys(db: &Connection) -> Result<(), VaultError> {
    db.execute("DELETE FROM backup_keys", &[])?;
    Ok(())
}

/// Whether any private key of the vault is in a token.
pub(crate) fn has_token_keys(db: &Connection) -> Result<bool, VaultError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM key_versions WHERE kty = 'RSA-HSM')";
    Ok(db.the_value(sql, &[])?)
}

/// The names of all keys, deleted ones too.
pub(crate) fn all_key_names(db: &Connection) -> Result<Vec<String>, VaultError> {
    let sql = "SELECT DISTINCT name FROM key_versions ORDER BY name";
    db.select(sql, &[], |row| Ok(row.get(0)?))
}

/// Writes what the vault does with deleted keys.
pub(crate) fn update_vault(db: &Connection, settings: &VaultSettings) -> Result<(), VaultError> {
    db.execute(
        "UPDATE vault SET retention_days = ?, purge_protection = ?",
        params![
            i64::from(settings.retention_days),
            settings.purge_protection
        ],
    )?;
    Ok(())
}

/// From where the vault may be asked.
pub(crate) fn network_rules(db: &Connection) -> Result<NetworkRules, VaultError> {
    let sql = "SELECT network FROM vault";
    let text: Option<String> = db.the_value(sql, &[])?;
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
    db.execute("UPDATE vault SET network = ?", params![text])?;
    Ok(())
}

/// How many records of one identity the vault takes in 10 seconds.
pub(crate) fn operations_limit(db: &Connection) -> Result<i64, VaultError> {
    let sql = "SELECT operations_limit FROM vault";
    Ok(db.the_value(sql, &[])?)
}

/// Changes that.
pub(crate) fn set_operations_limit(db: &Connection, limit: u32) -> Result<(), VaultError> {
    let sql = "UPDATE vault SET operations_limit = ?";
    db.execute(sql, params![i64::from(limit)])?;
    Ok(())
}

pub(crate) fn permissions(db: &Connection, object_id: Uuid) -> Result<Permissions, VaultError> {
    let sql = "SELECT permissions FROM access_policies WHERE object_id = ?";
    let found: Option<String> = db.value(sql, params![object_id.to_string()])?;
    found.as_deref().unwrap_or_default().parse()
}

/// All access policies, by object id.
pub(crate) fn policies(db: &Connection) -> Result<Vec<(Uuid, Permissions)>, VaultError> {
    let sql = "SELECT object_id, permissions FROM access_policies ORDER BY object_id";
    db.select(sql, &[], |row| {
        Ok((uuid(row.text(0)?)?, row.text(1)?.parse()?))
    })
}

/// Replaces what the identity may do.
pub(crate) fn set_policy(
    db: &Connection,
    object_id: Uuid,
    permissions: &Permissions,
) -> Result<(), VaultError> {
    db.execute(
        "INSERT INTO access_policies (object_id, rev, permissions) VALUES (?, 1, ?) \
         ON CONFLICT (object_id) DO UPDATE \
         SET rev = access_policies.rev + 1, permissions = excluded.permissions",
        params![object_id.to_string(), permissions.names().join(" ")],
    )?;
    Ok(())
}

/// Whether there was one.
pub(crate) fn delete_policy(db: &Connection, object_id: Uuid) -> Result<bool, VaultError> {
    let sql = "DELETE FROM access_policies WHERE object_id = ?";
    Ok(db.execute(sql, params![object_id.to_string()])? == 1)
}

/// Takes the audit log that a version 1 vault has left, the oldest line first.
pub(crate) fn take_unchained_audit(db: &Connection) -> Result<Vec<AuditRecord>, VaultError> {
    let sql = "SELECT time, caller, operation, key, version, detail, code FROM audit_unchained \
               ORDER BY seq";
    let records = db.select(sql, &[], |row| {
        let event = Event {
            caller: uuid(row.text(1)?)?.to_string(),
            origin: "unknown".into(),
            operation: row.get(2)?,
            key: row.get(3)?,
            version: row.get(4)?,
            disk: None,
            detail: row.get(5)?,
            code: row.get(6)?,
        };
        let time = time(row.text(0)?)?;
        Ok::<_, VaultError>(AuditRecord { time, event })
    })?;
    db.execute("DROP TABLE audit_unchained", &[])?;
    Ok(records)
}
