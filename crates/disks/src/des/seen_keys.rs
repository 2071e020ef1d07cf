//! The key versions of vaults as their databases have them.

use std::collections::{BTreeMap, HashMap};

use installation::catalog::{DiskEncryptionSetRecord, EncryptionType};
use installation::platform_key_url;
use vault::{KeyId, KeyUrl, SeenKey};

/// The key versions of vaults, by their URLs.
#[derive(Debug, Default)]
pub struct SeenKeys {
    versions: BTreeMap<String, SeenKey>,
    /// The latest version of each key, by the URL without a version.
    latest: HashMap<String, String>,
}

impl SeenKeys {
    /// Adds a version of a key in the vault with that URL.
    pub fn put(&mut self, vault_url: &str, key: SeenKey) {
        let url = |version| {
            let id = KeyId {
                name: key.name.clone(),
                version,
            };
            let vault_url = vault_url.to_owned();
            KeyUrl { vault_url, key: id }.to_string()
        };
        let of_version = url(Some(key.version.clone()));
        if key.is_latest {
            self.latest.insert(url(None), of_version.clone());
        }
        self.versions.insert(of_version, key);
    }

    /// All of them, by their URLs.
    pub fn versions(&self) -> impl Iterator<Item = (&String, &SeenKey)> {
        self.versions.iter()
    }

    /// The version that a set wraps new disks with; nothing where that is not known, as of a key in a vault elsewhere
    /// that the set follows.
    pub fn active(&self, set: &DiskEncryptionSetRecord) -> Option<String> {
        let mut url = set.key_url.parse::<KeyUrl>().ok()?;
        if !set.auto_rotation && url.key.version.is_some() {
            return Some(url.to_string());
        }
        url.key.version = None;
        self.latest.get(&url.to_string()).cloned()
    }

    /// The version of the platform-managed key that wraps the outer DEKs of a set's new disks; without a version where
    /// that is not known, and nothing where the set has no double encryption.
    pub(super) fn platform(&self, set: &DiskEncryptionSetRecord) -> Option<String> {
        let is_double = set.encryption_type == EncryptionType::PlatformAndCustomerKeys;
        let url = is_double.then(platform_key_url)?;
        Some(self.latest.get(&url).cloned().unwrap_or(url))
    }
}
