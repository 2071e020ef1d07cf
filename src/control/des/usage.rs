//! Which key version wraps what, and what would stop without it.

use serde::Serialize;
use uuid::Uuid;

use crate::catalog::VaultKind;
use crate::control::disks::{self, DiskView};
use crate::control::{ControlError, Installation};
use crate::envelope::ResourceKind;
use crate::vault::{KeyId, KeyUrl, KeyVault};

/// One key version that a disk encryption set uses or used.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyUsage {
    /// URL of the key, with its version where one is known.
    pub key_url: String,
    /// Whether the set wraps new disks with it.
    pub active: bool,
    /// Whether nothing needs it any more: no disk, of this set or another, is wrapped by it, and it
    /// wraps no new ones.
    pub safe_to_disable: bool,
    /// What it wraps.
    pub resources: Vec<KeyUser>,
}

/// Something whose DEK a key version wraps.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyUser {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: ResourceKind,
    /// Its name.
    pub name: String,
    /// The layer that it wraps, when that is not the top one: one that was shared with it, as by the
    /// image that a disk is a clone of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<Uuid>,
    /// The disk encryption set in whose name; none for the platform-managed key.
    pub disk_encryption_set_id: Option<String>,
    /// The key version that wraps it.
    pub key_url: String,
    /// As `disk show` has it.
    pub disk_state: &'static str,
}

/// What disabling a key version would do.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WhatIf {
    /// The key version.
    pub key_url: String,
    /// What it wraps: attached disks would stop, others could not be attached.
    pub resources: Vec<KeyUser>,
    /// Disk encryption sets with which no disk could be made.
    pub disk_encryption_sets: Vec<String>,
}

/// What uses keys for something: itself with the key of its top layer, then, with another key each,
/// layers beneath.
fn users_of(disk: DiskView) -> Vec<KeyUser> {
    let mut users: Vec<KeyUser> = vec![KeyUser {
        kind: disk.kind,
        name: disk.name,
        layer: None,
        disk_encryption_set_id: disk.encryption.disk_encryption_set_id,
        key_url: disk.encryption.key_url,
        disk_state: disk.disk_state,
    }];
    for layer in disk.layers.into_iter().rev() {
        let same = |user: &KeyUser| {
            user.key_url == layer.key_url
                && user.disk_encryption_set_id == layer.disk_encryption_set_id
        };
        if !users.iter().any(same) {
            users.push(KeyUser {
                layer: Some(layer.id),
                disk_encryption_set_id: layer.disk_encryption_set_id,
                key_url: layer.key_url,
                ..users[0].clone()
            });
        }
    }
    users
}

impl Installation {
    /// The key versions of a set: the active one first, then those that wrap one of its disks and
    /// those that it had before.
    ///
    /// # Errors
    /// When there is no such set or the catalog cannot be read.
    pub fn key_usage(&self, set: &str) -> Result<Vec<KeyUsage>, ControlError> {
        let record = self.catalog().des(set)?.record;
        // Without an answer of the vault the version that is the latest now is not known.
        let active = match self.wrapping_key_of(&record) {
            Ok(access) => access.key_url().to_string(),
            Err(error) => {
                log::warn!("the active key version of '{set}' is not known: {error}");
                record.key_url.clone()
            }
        };
        let users = self.key_users()?;
        let of_set = |user: &&KeyUser| user.disk_encryption_set_id.as_deref() == Some(set);
        let mut urls = vec![active.clone()];
        let used = users.iter().filter(of_set).map(|user| &user.key_url);
        for url in used.chain(&record.previous_keys) {
            if !urls.contains(url) {
                urls.push(url.clone());
            }
        }
        let usage = |key_url: String| {
            let resources: Vec<_> = users
                .iter()
                .filter(|user| is_version_of(&user.key_url, &key_url))
                .cloned()
                .collect();
            let active = key_url == active;
            KeyUsage {
                safe_to_disable: !active && resources.is_empty(),
                active,
                resources,
                key_url,
            }
        };
        Ok(urls.into_iter().map(usage).collect())
    }

    /// What would stop if a key version were disabled. Without a version the latest is meant, as
    /// with `key set-attributes`; of a vault elsewhere, which is not asked, all versions are.
    ///
    /// # Errors
    /// When there is no such vault or key, or the catalog cannot be read.
    pub fn what_if_disabled(&self, vault: &str, key: &KeyId) -> Result<WhatIf, ControlError> {
        let record = self.catalog().vault(&vault.to_ascii_lowercase())?.record;
        let versionless = KeyUrl {
            vault_url: record.url,
            key: KeyId {
                name: key.name.clone(),
                version: None,
            },
        };
        let given = KeyUrl {
            key: key.clone(),
            ..versionless.clone()
        };
        let (key_url, latest) = match record.kind {
            VaultKind::Https { .. } => (given.to_string(), key.version.is_none()),
            _ => {
                let vault = self.vault(vault)?;
                let latest = vault.key(&self.operator(), &versionless.key)?.key.kid;
                let meant = vault.key(&self.operator(), key)?.key.kid;
                let is_latest = meant == latest;
                (meant, is_latest)
            }
        };
        let mut resources = self.key_users()?;
        resources.retain(|user| is_version_of(&user.key_url, &key_url));
        let mut disk_encryption_sets = Vec::new();
        for set in self.catalog().all_des()? {
            let set = set.record;
            let mut url: KeyUrl = set.key_url.parse()?;
            if set.auto_rotation {
                url.key.version = None;
            }
            if (url == versionless && latest) || is_version_of(&url.to_string(), &key_url) {
                disk_encryption_sets.push(set.name);
            }
        }
        Ok(WhatIf {
            key_url,
            resources,
            disk_encryption_sets,
        })
    }

    /// All disks, snapshots and images with the keys that wrap their layers, by their headers.
    fn key_users(&self) -> Result<Vec<KeyUser>, ControlError> {
        let mut users = Vec::new();
        for kind in ResourceKind::ALL {
            let views = disks::list(self, kind).map_err(|e| ControlError::Disks(Box::new(e)))?;
            users.extend(views.into_iter().flat_map(users_of));
        }
        Ok(users)
    }
}

/// Whether `url` is that key version, or a version of that key when `key_url` names none.
fn is_version_of(url: &str, key_url: &str) -> bool {
    url.strip_prefix(key_url)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
