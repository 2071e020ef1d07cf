//! The rows of vaults and disk encryption sets.

use database::Row;

use super::columns::{parse_json, parse_time, uuid};
use super::error::CatalogError;
use super::record::{DiskEncryptionSetRecord, Rev, Stored, VaultRecord};

pub(super) const VAULT_COLUMNS: &str = "name, rev, url, kind, created";

pub(super) const DES_COLUMNS: &str = "name, rev, identity, principal_id, key_url, previous_keys, \
                           auto_rotation, last_rotation, created, encryption_type";

pub(super) fn parse_vault(row: &Row) -> Result<Stored<VaultRecord>, CatalogError> {
    let name: String = row.get("name")?;
    Ok(Stored {
        rev: Rev(row.get("rev")?),
        record: VaultRecord {
            url: row.get("url")?,
            kind: parse_json(&name, "kind", row.text("kind")?)?,
            created: parse_time(&name, row.text("created")?)?,
            name,
        },
    })
}

pub(super) fn parse_des(row: &Row) -> Result<Stored<DiskEncryptionSetRecord>, CatalogError> {
    let name: String = row.get("name")?;
    let previous: String = row.get("previous_keys")?;
    let last_rotation: Option<String> = row.get("last_rotation")?;
    Ok(Stored {
        rev: Rev(row.get("rev")?),
        record: DiskEncryptionSetRecord {
            identity: parse_json(&name, "identity", row.text("identity")?)?,
            principal_id: uuid(&name, row.text("principal_id")?)?,
            key_url: row.get("key_url")?,
            previous_keys: parse_json(&name, "previous_keys", &previous)?,
            auto_rotation: row.get("auto_rotation")?,
            last_rotation: last_rotation.map(|t| parse_time(&name, &t)).transpose()?,
            created: parse_time(&name, row.text("created")?)?,
            encryption_type: parse_json(&name, "encryption_type", row.text("encryption_type")?)?,
            name,
        },
    })
}
