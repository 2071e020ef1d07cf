//! Which key version wraps what, and what would stop without it.

use std::collections::HashMap;

use serde::Serialize;

use super::key_user::KeyUser;
use super::safety::{
    Needs, SafeToDisable, Safety, VaultLook, is_version_of, other_versions, safety_of,
};
use crate::{DiskError, DiskView};
use installation::catalog::{
    DiskEncryptionSetRecord, DiskRecord, EncryptionType, LayerUse, Stored,
};
use installation::envelope::ResourceKind;
use installation::{Installation, InstallationError, PLATFORM_VAULT, platform_key_url};
use vault::{KeyId, KeyUrl, KeyVault, same_key_url};

/// One key version that a disk encryption set uses or used.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyUsage {
    /// URL of the key, with its version where one is known.
    pub key_url: String,
    /// Whether the set wraps new disks with it.
    pub active: bool,
    /// Whether nothing needs it any more.
    #[serde(flatten)]
    pub safety: Safety,
    /// What it wraps.
    pub resources: Vec<KeyUser>,
}

/// What disabling a key version would do.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WhatIf {
    /// The key version.
    pub key_url: String,
    /// Whether nothing would stop, here or elsewhere.
    #[serde(flatten)]
    pub safety: Safety,
    /// What it wraps: attached disks would stop, others could not be attached.
    pub resources: Vec<KeyUser>,
    /// Disk encryption sets with which no disk could be made.
    pub disk_encryption_sets: Vec<String>,
    /// When no version was named: other versions of the key, which stay as they are, that something needs
    /// or may need.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_versions_in_use: Vec<VersionInUse>,
}

/// A version of a key that stays as it is.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionInUse {
    /// The key version.
    pub key_url: String,
    /// Why it could not be disabled, or why that is not known.
    #[serde(flatten)]
    pub safety: Safety,
}

/// What uses keys for something: itself with the key of its top layer, then, with another key each,
/// layers beneath. Where its header cannot be read, or is another disk's, the catalog's row counts,
/// and both where they differ. So do both copies of a header: a sync may have failed, and storage has one of them.
fn users_of(disk: &DiskView, row: Option<&DiskRecord>) -> Vec<KeyUser> {
    let mut users: Vec<KeyUser> = vec![KeyUser {
        kind: disk.kind,
        name: disk.name.clone(),
        layer: None,
        disk_encryption_set_id: disk.encryption.disk_encryption_set_id.clone(),
        key_url: disk.encryption.key_url.clone(),
        disk_state: disk.disk_state,
        problem: disk.problem.clone(),
    }];
    let by_header = disk.layers.iter().rev();
    let by_header = by_header.flat_map(|layer| {
        layer.keys().map(|(set, key_url)| LayerUse {
            layer: layer.id,
            disk_encryption_set: set.map(Into::into),
            key_url: key_url.into(),
        })
    });
    let by_any_copy = disk.key_uses.iter().rev().cloned();
    let by_catalog = row
        .into_iter()
        .flat_map(|row| row.layers.iter().rev().cloned());
    for layer in by_header.chain(by_any_copy).chain(by_catalog) {
        let same = |user: &KeyUser| {
            same_key_url(&user.key_url, &layer.key_url)
                && user.disk_encryption_set_id == layer.disk_encryption_set
        };
        if !users.iter().any(same) {
            users.push(KeyUser {
                layer: Some(layer.layer),
                disk_encryption_set_id: layer.disk_encryption_set,
                key_url: layer.key_url,
                ..users[0].clone()
            });
        }
    }
    users
}

/// The key versions of a set: the active one first, then those that wrap one of its disks and
/// those that it had before.
///
/// # Errors
/// When there is no such set or the catalog cannot be read.
pub fn key_usage(installation: &Installation, set: &str) -> Result<Vec<KeyUsage>, DiskError> {
    let record = installation.catalog().des(set)?.record;
    // Without an answer of the vault the version that is the latest now is not known.
    let active = match installation.wrapping_key_of(&record) {
        Ok(access) => access.key_url().to_string(),
        Err(error) => {
            log::warn!("the active key version of '{set}' is not known: {error}");
            record.key_url.clone()
        }
    };
    let users = key_users(installation)?;
    let of_set = |user: &&KeyUser| user.disk_encryption_set_id.as_deref() == Some(set);
    let mut urls = vec![active.clone()];
    let used = users.iter().filter(of_set).map(|user| &user.key_url);
    let departed = installation.catalog().departed()?;
    let departed = departed.iter().flat_map(|departed| &departed.keys);
    let departed = departed
        .filter(|key| key.disk_encryption_set.as_deref() == Some(set))
        .map(|key| &key.key_url);
    for url in used.chain(departed).chain(&record.previous_keys) {
        if !urls.iter().any(|known| same_key_url(known, url)) {
            urls.push(url.clone());
        }
    }
    let active_keys = active_keys(installation)?;
    let usage = |key_url: String| {
        let resources: Vec<_> = users
            .iter()
            .filter(|user| is_version_of(&user.key_url, &key_url))
            .cloned()
            .collect();
        let needs = Needs {
            users: &users,
            sets: &sets_with(&active_keys, &key_url),
            vaults: VaultLook::Opened,
        };
        Ok(KeyUsage {
            safety: safety_of(installation, &key_url, &needs)?,
            active: key_url == active,
            resources,
            key_url,
        })
    };
    urls.into_iter().map(usage).collect()
}

/// The sets with the key versions that wrap their new disks; without a version where the vault does
/// not say which is the latest.
fn active_keys(installation: &Installation) -> Result<Vec<(String, String)>, InstallationError> {
    let mut active = Vec::new();
    for set in installation.catalog().all_des()? {
        let set = set.record;
        let mut url: KeyUrl = set.key_url.parse()?;
        if set.auto_rotation {
            url.key.version = None;
        }
        if url.key.version.is_none() {
            match installation.own_key_of(&set) {
                Ok(access) => url = access.key_url(),
                Err(error) => {
                    let name = &set.name;
                    log::warn!("the active key version of '{name}' is not known: {error}");
                }
            }
        }
        active.push((set.name.clone(), url.to_string()));
        active.extend(platform_key_of(installation, &set).map(|url| (set.name, url)));
    }
    Ok(active)
}

/// The version of the platform-managed key that wraps the outer DEKs of new disks of a set; without a version where it
/// is not known, and nothing where the set has no double encryption.
fn platform_key_of(installation: &Installation, set: &DiskEncryptionSetRecord) -> Option<String> {
    if set.encryption_type == EncryptionType::CustomerKey {
        return None;
    }
    Some(match installation.wrapping_key(None) {
        Ok(access) => access.key_url().to_string(),
        Err(error) => {
            // Any version of it, then.
            log::debug!("the active version of the platform-managed key is not known: {error}");
            platform_key_url()
        }
    })
}

/// What would stop if a key version were disabled. Without a version the latest is meant, as
/// with `key set-attributes`; of a vault elsewhere, which is not asked, all versions are.
///
/// # Errors
/// When there is no such vault or key, or the catalog cannot be read.
pub fn what_if_disabled(
    installation: &Installation,
    vault: &str,
    key: &KeyId,
) -> Result<WhatIf, DiskError> {
    let record = installation
        .catalog()
        .vault(&vault.to_ascii_lowercase())?
        .record;
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
    let (key_url, latest) = match record.kind.is_remote() {
        true => (given.to_string(), key.version.is_none()),
        false => {
            let vault = installation.vault(vault)?;
            let latest = vault
                .key(&installation.operator(), &versionless.key)?
                .key
                .kid;
            let meant = vault.key(&installation.operator(), key)?.key.kid;
            let is_latest = meant == latest;
            (meant, is_latest)
        }
    };
    let users = key_users(installation)?;
    let mut disk_encryption_sets = Vec::new();
    for set in installation.catalog().all_des()? {
        let set = set.record;
        let mut url: KeyUrl = set.key_url.parse()?;
        if set.auto_rotation {
            url.key.version = None;
        }
        let is_platform = |url: String| is_version_of(&url, &key_url);
        if (url == versionless && latest)
            || is_version_of(&url.to_string(), &key_url)
            || platform_key_of(installation, &set).is_some_and(is_platform)
        {
            disk_encryption_sets.push(set.name);
        }
    }
    let other_versions_in_use = match key.version {
        Some(_) => Vec::new(),
        None => others_in_use(installation, &key_url, &users)?,
    };
    let with_it = |set: &String| (set.clone(), SafeToDisable::No);
    let needs = Needs {
        users: &users,
        sets: &disk_encryption_sets.iter().map(with_it).collect::<Vec<_>>(),
        vaults: VaultLook::Opened,
    };
    Ok(WhatIf {
        safety: safety_of(installation, &key_url, &needs)?,
        resources: users
            .iter()
            .filter(|user| is_version_of(&user.key_url, &key_url))
            .cloned()
            .collect(),
        key_url,
        disk_encryption_sets,
        other_versions_in_use,
    })
}

/// The other versions of the same key that something needs, or may need.
fn others_in_use(
    installation: &Installation,
    key_url: &str,
    users: &[KeyUser],
) -> Result<Vec<VersionInUse>, DiskError> {
    let active_keys = active_keys(installation)?;
    let mut in_use = Vec::new();
    for key_url in other_versions(installation, key_url, users)? {
        let needs = Needs {
            users,
            sets: &sets_with(&active_keys, &key_url),
            vaults: VaultLook::Opened,
        };
        let safety = safety_of(installation, &key_url, &needs)?;
        if safety.safe_to_disable != SafeToDisable::Yes {
            in_use.push(VersionInUse { key_url, safety });
        }
    }
    Ok(in_use)
}

/// Whether a key can be deleted with all its versions.
///
/// # Errors
/// As [`what_if_disabled`].
pub fn what_if_deleted(
    installation: &Installation,
    vault: &str,
    key: &str,
) -> Result<Safety, DiskError> {
    let record = installation
        .catalog()
        .vault(&vault.to_ascii_lowercase())?
        .record;
    let key_url = KeyUrl {
        vault_url: record.url,
        key: KeyId {
            name: key.into(),
            version: None,
        },
    };
    let key_url = key_url.to_string();
    let needs = Needs {
        users: &key_users(installation)?,
        sets: &sets_with(&active_keys(installation)?, &key_url),
        vaults: VaultLook::Opened,
    };
    Ok(safety_of(installation, &key_url, &needs)?)
}

/// Why a key of a vault must not be purged, in words: of the platform's vault one that wraps something, or would wrap
/// what is made next. Whose keys other vaults have is their owners' business.
///
/// # Errors
/// As [`what_if_deleted`].
pub fn refused_purge(
    installation: &Installation,
    vault: &str,
    key: &str,
) -> Result<Option<String>, DiskError> {
    if !vault.eq_ignore_ascii_case(PLATFORM_VAULT) {
        return Ok(None);
    }
    let safety = what_if_deleted(installation, vault, key)?;
    Ok(match safety.safe_to_disable {
        SafeToDisable::Yes => None,
        SafeToDisable::No | SafeToDisable::Unknown => Some(format!(
            "is it safe to purge the platform-managed key? {}; move what it wraps to a disk encryption set, or delete it, \
             before",
            safety.summary()
        )),
    })
}

/// All disks, snapshots and images with the keys that wrap their layers, by their headers and by
/// the catalog.
fn key_users(installation: &Installation) -> Result<Vec<KeyUser>, DiskError> {
    let mut views = Vec::new();
    for kind in ResourceKind::ALL {
        let of_kind = crate::list(installation, kind)?;
        views.extend(of_kind);
    }
    // After the headers were looked at, which brings the rows up to date.
    let rows = installation.catalog().resources()?;
    Ok(key_users_of(&views, &rows))
}

/// What uses keys, by what was looked at.
pub(super) fn key_users_of(views: &[DiskView], rows: &[Stored<DiskRecord>]) -> Vec<KeyUser> {
    let rows: HashMap<_, _> = rows
        .iter()
        .map(|row| (row.record.id, &row.record))
        .collect();
    let users = views.iter().flat_map(|view| {
        let row = rows.get(&view.unique_id);
        users_of(view, row.copied())
    });
    users.collect()
}

/// The sets that wrap new disks with that key version, or may: those whose active version is not known.
pub(super) fn sets_with(
    active_keys: &[(String, String)],
    key_url: &str,
) -> Vec<(String, SafeToDisable)> {
    let mut sets = Vec::new();
    for (set, active) in active_keys {
        if is_version_of(active, key_url) {
            sets.push((set.clone(), SafeToDisable::No));
        } else if is_version_of(key_url, active) {
            sets.push((set.clone(), SafeToDisable::Unknown));
        }
    }
    sets
}
