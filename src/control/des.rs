//! Disk encryption sets.

use time::OffsetDateTime;
use uuid::Uuid;

use super::disks::{self, DiskError};
use super::{ControlError, Installation, KeyAccess};
use crate::catalog::{DesIdentity, DiskEncryptionSetRecord, DiskRecord, Stored, VaultKind};
use crate::vault::{KeyUrl, KeyVault, VaultError, VaultErrorCode};

/// A disk encryption set to be made.
pub struct NewDes<'a> {
    /// Its name.
    pub name: &'a str,
    /// URL of its key, with or without a version.
    pub key_url: &'a str,
    /// Name or URL of the key's vault, to be checked against the key's URL.
    pub source_vault: Option<&'a str>,
    /// Whether the latest version of the key is to be followed.
    pub auto_rotation: bool,
    /// The managed identity that uses the key of a vault elsewhere; the machine's by default. A
    /// vault that is kept here knows an identity that is made with the set.
    pub identity: Option<DesIdentity>,
}

/// What is to change of a disk encryption set; `None` stays.
#[derive(Default)]
pub struct DesChange<'a> {
    /// URL of the new key.
    pub key_url: Option<&'a str>,
    /// Name or URL of the new key's vault, to be checked against the key's URL.
    pub source_vault: Option<&'a str>,
    /// Whether the latest version of the key is to be followed.
    pub auto_rotation: Option<bool>,
}

/// What became of a changed disk encryption set.
pub struct UpdatedDes {
    /// As it is now.
    pub record: DiskEncryptionSetRecord,
    /// The disks that its key wraps now and did not before.
    pub rewrapped: Vec<String>,
    /// The disks that another key still wraps, and why.
    pub left: Vec<(DiskRecord, DiskError)>,
}

/// What a deleted disk encryption set leaves behind.
pub struct DeletedDes {
    /// The identity, which is gone with it.
    pub principal_id: Uuid,
    /// The vaults that still have an access policy for that identity.
    pub vaults_with_policy: Vec<String>,
}

impl Installation {
    /// Makes a disk encryption set and its identity, which may use no key until it is granted.
    ///
    /// # Errors
    /// When the name is bad or taken, or its key does not exist or is disabled, and when a vault
    /// elsewhere does not know the managed identity.
    pub fn create_des(&self, new: &NewDes<'_>) -> Result<DiskEncryptionSetRecord, ControlError> {
        check_des_name(new.name)?;
        let url: KeyUrl = new.key_url.parse()?;
        let identity = match (&new.identity, url.vault_name()) {
            (None, Some(_)) => DesIdentity::SystemAssigned,
            (None, None) => DesIdentity::Imds { client_id: None },
            (Some(identity), None) => identity.clone(),
            (Some(_), Some(_)) => {
                return Err(ControlError::Identity {
                    vault: url.vault_url,
                    why: "it is kept here and knows an identity that is made with the set: leave \
                          --identity and --identity-endpoint out",
                });
            }
        };
        let (key_url, managed) = self.checked_key_url(&url, new.source_vault, &identity)?;
        let record = DiskEncryptionSetRecord {
            name: new.name.into(),
            identity,
            principal_id: managed.unwrap_or_else(Uuid::new_v4),
            key_url,
            previous_keys: Vec::new(),
            auto_rotation: new.auto_rotation,
            last_rotation: None,
            created: OffsetDateTime::now_utc(),
        };
        self.catalog().insert_des(&record)?;
        Ok(record)
    }

    /// Changes a disk encryption set and wraps its disks, attached ones too, under its key again.
    ///
    /// When it has disks, its identity must be able to use the new key, or else nothing changes. A
    /// disk that cannot be wrapped again, because the old key refuses, stays under the old key:
    /// its header names the key version that wraps it, whatever the set's active key is. So does
    /// every disk that a crash leaves behind; repeating the command takes those up.
    ///
    /// # Errors
    /// As [`Installation::create_des`]; the vault's refusal of the new key;
    /// [`Changed`](crate::catalog::CatalogError::Changed).
    pub fn update_des(
        &self,
        name: &str,
        change: &DesChange<'_>,
    ) -> Result<UpdatedDes, ControlError> {
        let Stored { rev, mut record } = self.catalog().des(name)?;
        if let Some(url) = change.key_url {
            let (url, _) =
                self.checked_key_url(&url.parse()?, change.source_vault, &record.identity)?;
            if url != record.key_url {
                let old = std::mem::replace(&mut record.key_url, url);
                record
                    .previous_keys
                    .retain(|known| *known != old && *known != record.key_url);
                record.previous_keys.insert(0, old);
                record.last_rotation = Some(OffsetDateTime::now_utc());
            }
        }
        record.auto_rotation = change.auto_rotation.unwrap_or(record.auto_rotation);
        let has_disks = !self.catalog().disks_of(Some(name))?.is_empty();
        let key = has_disks
            .then(|| self.wrapping_key_of(&record))
            .transpose()?;
        if let Some(key) = &key {
            key.probe()?;
        }
        self.catalog().update_des(rev, &record)?;
        let mut updated = UpdatedDes {
            record,
            rewrapped: Vec::new(),
            left: Vec::new(),
        };
        if let Some(key) = key {
            self.rewrap(&key, &mut updated)?;
        }
        Ok(updated)
    }

    fn rewrap(&self, key: &KeyAccess, updated: &mut UpdatedDes) -> Result<(), ControlError> {
        let set = Some(updated.record.name.as_str());
        let key_url = key.key_url().to_string();
        for disk in self.catalog().disks_of(set)? {
            let disk = disk.record;
            if disk.key_url == key_url {
                continue;
            }
            match disks::update(self, &disk.name, set) {
                Ok(()) => updated.rewrapped.push(disk.name),
                Err(error) => updated.left.push((disk, error)),
            }
        }
        Ok(())
    }

    /// Deletes a set that no disk uses, and with it its identity.
    ///
    /// # Errors
    /// [`InUse`](crate::catalog::CatalogError::InUse), [`CatalogError::NotFound`].
    pub fn delete_des(&self, name: &str) -> Result<DeletedDes, ControlError> {
        let Stored { rev, record } = self.catalog().des(name)?;
        // A disk whose header names the set needs its identity, whatever the catalog says.
        disks::reconcile(self)?;
        self.catalog().delete_des(name, rev)?;
        let mut vaults_with_policy = Vec::new();
        for vault in self.catalog().vaults()? {
            if matches!(vault.record.kind, VaultKind::Https { .. }) {
                continue;
            }
            let name = vault.record.name;
            // A vault that cannot be opened now says so when it is used; the set is gone already.
            let Ok(policies) = self.vault(&name).and_then(|v| Ok(v.policies()?)) else {
                log::warn!("the key vault '{name}' could not be searched for access policies");
                continue;
            };
            if policies.iter().any(|(id, _)| *id == record.principal_id) {
                vaults_with_policy.push(name);
            }
        }
        Ok(DeletedDes {
            principal_id: record.principal_id,
            vaults_with_policy,
        })
    }

    /// The key's URL as it is recorded, and, from a vault elsewhere, the object id of the managed
    /// identity. Refuses a key that is not there or disabled, so that a slip of the pen shows at once
    /// and not with the first disk. What a vault elsewhere does not tell an identity that was not
    /// granted anything yet shows when it is granted.
    fn checked_key_url(
        &self,
        url: &KeyUrl,
        source_vault: Option<&str>,
        identity: &DesIdentity,
    ) -> Result<(String, Option<Uuid>), ControlError> {
        let (name, bundle, object_id) = match url.vault_name() {
            Some(name) => {
                if *identity != DesIdentity::SystemAssigned {
                    return Err(ControlError::Identity {
                        vault: url.vault_url.clone(),
                        why: "it is kept here, and the set has a managed identity: make a set for \
                              this vault, and move disks to it with `sealdisk disk update`",
                    });
                }
                let vault = self.vault(name)?;
                let bundle = vault.key(&self.operator(), &url.key)?;
                (name.to_owned(), Some(bundle), None)
            }
            None => {
                let vault = self.remote_vault(&url.vault_url, identity)?;
                let (object_id, bundle) = vault.introduce(&url.key)?;
                let record = self.catalog().vault_by_url(&url.vault_url)?;
                let name = record.map(|vault| vault.record.name).unwrap_or_default();
                (name, bundle, Some(object_id))
            }
        };
        if let Some(source) = source_vault {
            let given = source.trim_end_matches('/').to_ascii_lowercase();
            if given != name && given != url.vault_url {
                return Err(bad(format!(
                    "the key {url} is not in the key vault '{source}'; leave --source-vault out or \
                     give '{name}'"
                )));
            }
        }
        if let Some(bundle) = bundle.filter(|bundle| !bundle.attributes.enabled) {
            return Err(VaultError::new(
                VaultErrorCode::KeyDisabled,
                format!(
                    "the key {} is disabled; enable it with `sealdisk keyvault key set-attributes \
                     {} --vault-name {name} --enabled true`",
                    bundle.key.kid, url.key.name,
                ),
            )
            .into());
        }
        Ok((url.to_string(), object_id))
    }
}

/// Azure's rule for names of disk encryption sets: 1 to 80 letters, digits, `_`, `.` and `-`.
fn check_des_name(name: &str) -> Result<(), ControlError> {
    let allowed = (1..=80).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if allowed {
        return Ok(());
    }
    Err(bad(format!(
        "'{name}' is no name for a disk encryption set: use 1 to 80 letters, digits, '_', '.' and \
         '-', beginning with a letter or digit"
    )))
}

fn bad(message: String) -> ControlError {
    VaultError::new(VaultErrorCode::BadParameter, message).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::import::Cancel;
    use crate::vault::{AttributeChange, KeySize, Permissions};

    struct Fixture {
        _dir: tempfile::TempDir,
        installation: Installation,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let installation = Installation::open(dir.path()).unwrap();
            let vault = installation.create_vault("myvault").unwrap();
            for key in ["k", "l"] {
                let none = AttributeChange::default();
                vault
                    .create_key(&installation.operator(), key, KeySize::Rsa2048, &none)
                    .unwrap();
            }
            Self {
                _dir: dir,
                installation,
            }
        }

        fn create(&self, key_url: &str, source_vault: Option<&str>) -> Result<(), ControlError> {
            let new = NewDes {
                name: "set",
                key_url,
                source_vault,
                auto_rotation: false,
                identity: None,
            };
            self.installation.create_des(&new).map(drop)
        }
    }

    fn url(key: &str) -> String {
        format!("https://myvault.vault.localhost/keys/{key}")
    }

    #[test]
    fn its_identity_wraps_only_once_it_may() {
        let fixture = Fixture::new();
        fixture.create(&url("k"), Some("MyVault")).unwrap();
        let installation = &fixture.installation;
        let error = installation.wrapping_key(Some("set")).err().unwrap();
        let id = installation.identity(Some("set")).unwrap().object_id;
        let command =
            format!("set-policy myvault --object-id {id} --key-permissions get wrapKey unwrapKey");
        assert!(error.to_string().contains(&command), "{error}");
        let vault = installation.vault("myvault").unwrap();
        vault
            .set_policy(&installation.operator(), id, &Permissions::for_disks())
            .unwrap();
        let access = installation.wrapping_key(Some("set")).unwrap();
        assert_eq!(access.key.name, "k");
        assert_eq!(access.key.version.map(|v| v.len()), Some(32));

        let deleted = installation.delete_des("set").unwrap();
        assert_eq!(deleted.principal_id, id);
        assert_eq!(deleted.vaults_with_policy, ["myvault"]);
        assert!(installation.wrapping_key(Some("set")).is_err());
    }

    #[test]
    fn a_key_that_is_not_there_or_elsewhere_is_refused() {
        let fixture = Fixture::new();
        for (key_url, source, why) in [
            (url("none"), None, "no key 'none'"),
            (
                format!("{}/{}", url("k"), "0".repeat(32)),
                None,
                "no version",
            ),
            (
                "https://other.vault.localhost/keys/k".into(),
                None,
                "no key vault named 'other'",
            ),
            (
                "https://v.example.net/keys/k".into(),
                None,
                "keyvault connect",
            ),
            ("k".into(), None, "no key URL"),
            (url("k"), Some("other"), "not in the key vault 'other'"),
        ] {
            let error = fixture.create(&key_url, source).unwrap_err();
            assert!(error.to_string().contains(why), "{error} for {why}");
        }
        assert!(fixture.installation.catalog().all_des().unwrap().is_empty());
    }

    #[test]
    fn a_new_key_makes_the_old_one_a_previous_one() {
        let fixture = Fixture::new();
        fixture.create(&url("k"), None).unwrap();
        let installation = &fixture.installation;
        let change = |key: &str| {
            let url = url(key);
            let change = DesChange {
                key_url: Some(&url),
                ..DesChange::default()
            };
            installation.update_des("set", &change).unwrap()
        };
        assert_eq!(change("k").record.last_rotation, None, "nothing changed");
        let set = change("l").record;
        assert!(set.last_rotation.is_some());
        assert_eq!(set.key_url, url("l"));
        assert_eq!(set.previous_keys, [url("k")]);
        assert_eq!(change("k").record.previous_keys, [url("l")]);
    }

    #[test]
    fn a_new_key_wraps_the_sets_disks_or_nothing_changes() {
        let fixture = Fixture::new();
        let installation = &fixture.installation;
        fixture.create(&url("k"), None).unwrap();
        let vault = installation.vault("myvault").unwrap();
        let operator = installation.operator();
        let id = installation.identity(Some("set")).unwrap().object_id;
        let allow = |permissions: &str| {
            let permissions = permissions.parse().unwrap();
            vault.set_policy(&operator, id, &permissions).unwrap();
        };
        allow("get wrapKey unwrapKey");
        let request = disks::CreateRequest {
            name: "disk".into(),
            size: Some(1 << 20),
            source: None,
            disk_encryption_set: Some("set".into()),
            sector_size: 4096,
            data_dir: None,
        };
        disks::create(installation, &request, &Cancel::default(), |_| |_| ()).unwrap();
        let url = url("l");
        let change = DesChange {
            key_url: Some(&url),
            ..DesChange::default()
        };
        let before = installation.catalog().des("set").unwrap();
        allow("get wrapKey");
        let error = installation.update_des("set", &change).err().unwrap();
        assert!(error.to_string().contains("'unwrapKey'"), "{error}");
        assert_eq!(installation.catalog().des("set").unwrap(), before);

        allow("get wrapKey unwrapKey");
        let enable = |key: &str, enabled| {
            let key = crate::vault::KeyId {
                name: key.into(),
                version: None,
            };
            let enabled = AttributeChange {
                enabled: Some(enabled),
                ..AttributeChange::default()
            };
            vault.set_attributes(&operator, &key, &enabled).unwrap();
        };
        enable("k", false);
        let updated = installation.update_des("set", &change).unwrap();
        assert_eq!(updated.left.len(), 1, "the old key refuses");
        enable("k", true);
        let updated = installation.update_des("set", &change).unwrap();
        assert_eq!(updated.rewrapped, ["disk"]);
        let disk = installation.catalog().disk("disk").unwrap().record;
        assert!(disk.key_url.starts_with(&url), "{}", disk.key_url);
        let updated = installation.update_des("set", &change).unwrap();
        assert!(updated.rewrapped.is_empty() && updated.left.is_empty());

        let error = installation.delete_des("set").err().unwrap();
        assert!(error.to_string().contains("'disk'"), "{error}");
    }
}
