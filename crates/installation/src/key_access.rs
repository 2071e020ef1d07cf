//! In whose name, in which vault and with which key a disk's DEK is wrapped and unwrapped.

use super::vaults::PLATFORM_KEY;
use super::{Installation, InstallationError};
use crate::catalog::{DesIdentity, DiskEncryptionSetRecord, EncryptionType};
use vault::{Caller, KeyId, KeyUrl, KeyVault, VaultError, VaultErrorCode, WrapAlgorithm};

/// A key together with the vault that has it and the identity that uses it.
pub struct KeyAccess {
    /// The vault.
    pub vault: Box<dyn KeyVault>,
    /// The identity.
    pub caller: Caller,
    /// The key; its version is given.
    pub key: KeyId,
    /// With double encryption: the platform-managed key, which wraps the outer DEK. Whoever unwraps opens each envelope
    /// by itself and has none.
    pub platform: Option<Box<Self>>,
}

impl KeyAccess {
    /// The key's URL, with its version.
    pub fn key_url(&self) -> KeyUrl {
        KeyUrl {
            vault_url: self.vault.url().into(),
            key: self.key.clone(),
        }
    }

    /// Wraps and unwraps something worthless, to see whether the identity may do both now.
    ///
    /// # Errors
    /// The vault's refusal.
    pub fn probe(&self) -> Result<(), VaultError> {
        let algorithm = WrapAlgorithm::RsaOaep256;
        let wrapped = self
            .vault
            .wrap_key(&self.caller, &self.key, algorithm, b"probe")?;
        self.vault
            .unwrap_key(&self.caller, &self.key, algorithm, &wrapped.value)?;
        Ok(())
    }
}

impl Installation {
    /// The key that wraps new disks of a disk encryption set, or (`None`) the platform-managed
    /// key, which is made at its first use. Looking the version up takes the permission `get`.
    ///
    /// # Errors
    /// When there is no such set, vault or key, or the identity lacks the permission `get`.
    pub fn wrapping_key(&self, des: Option<&str>) -> Result<KeyAccess, InstallationError> {
        let Some(name) = des else {
            let key = KeyId {
                name: PLATFORM_KEY.into(),
                version: None,
            };
            return current(Box::new(self.platform_vault()?), self.platform(), &key);
        };
        self.wrapping_key_of(&self.catalog().des(name)?.record)
    }

    /// The key that wraps new disks of a set with that record.
    pub fn wrapping_key_of(
        &self,
        set: &DiskEncryptionSetRecord,
    ) -> Result<KeyAccess, InstallationError> {
        let platform = match set.encryption_type {
            EncryptionType::CustomerKey => None,
            EncryptionType::PlatformAndCustomerKeys => Some(Box::new(self.wrapping_key(None)?)),
        };
        Ok(KeyAccess {
            platform,
            ..self.own_key_of(set)?
        })
    }

    /// The customer's key alone that wraps new disks of a set with that record.
    ///
    /// # Errors
    /// As [`Installation::wrapping_key`].
    pub fn own_key_of(
        &self,
        set: &DiskEncryptionSetRecord,
    ) -> Result<KeyAccess, InstallationError> {
        let mut url: KeyUrl = set.key_url.parse()?;
        if set.auto_rotation {
            url.key.version = None;
        }
        let caller = self.identity_of(set)?;
        let vault = self.key_vault_at(&url.vault_url, &set.identity)?;
        current(vault, caller, &url.key)
    }

    /// Access to the key version that an envelope names, in the name of the disk's encryption set,
    /// or (`None`) of the platform.
    ///
    /// # Errors
    /// When there is no such set or vault. Whether the identity may use the key shows when it does.
    pub fn unwrapping_key(
        &self,
        des: Option<&str>,
        vault_url: &str,
        key: KeyId,
    ) -> Result<KeyAccess, InstallationError> {
        if let Some(name) = des {
            let set = self.catalog().des(name)?.record;
            return self.unwrapping_key_of(&set, vault_url, key);
        }
        Ok(KeyAccess {
            caller: self.platform(),
            vault: self.key_vault_at(vault_url, &DesIdentity::SystemAssigned)?,
            key,
            platform: None,
        })
    }

    /// As [`Installation::unwrapping_key`] in the name of a set with that record.
    ///
    /// # Errors
    /// As [`Installation::unwrapping_key`].
    pub fn unwrapping_key_of(
        &self,
        set: &DiskEncryptionSetRecord,
        vault_url: &str,
        key: KeyId,
    ) -> Result<KeyAccess, InstallationError> {
        Ok(KeyAccess {
            caller: self.identity_of(set)?,
            vault: self.key_vault_at(vault_url, &set.identity)?,
            key,
            platform: None,
        })
    }

    /// The identity of a disk encryption set, or (`None`) of the platform.
    ///
    /// # Errors
    /// When there is no such set, or its identity was removed.
    pub fn identity(&self, des: Option<&str>) -> Result<Caller, InstallationError> {
        match des {
            None => Ok(self.platform()),
            Some(name) => self.identity_of(&self.catalog().des(name)?.record),
        }
    }

    /// The identity of a set; a removed one is refused by every vault, so it is not even named.
    fn identity_of(&self, set: &DiskEncryptionSetRecord) -> Result<Caller, InstallationError> {
        let is_there = match &set.identity {
            DesIdentity::None => false,
            // It stays while the set has it. A policy that names one that is gone all the same grants nothing.
            DesIdentity::UserAssigned { object_id, .. } => {
                self.catalog().identity_by_object(*object_id)?.is_some()
            }
            DesIdentity::SystemAssigned
            | DesIdentity::Imds { .. }
            | DesIdentity::Endpoint { .. } => true,
        };
        if is_there {
            return Ok(Caller::local(set.principal_id));
        }
        let message = format!(
            "the disk encryption set '{name}' has no identity any more; give it one with `sealdisk \
             disk-encryption-set identity assign {name}`, and grant that the key",
            name = set.name
        );
        Err(VaultError::new(VaultErrorCode::Unauthorized, message).into())
    }
}

/// Fixes the version, so that what is wrapped and what is recorded cannot differ.
fn current(
    vault: Box<dyn KeyVault>,
    caller: Caller,
    key: &KeyId,
) -> Result<KeyAccess, InstallationError> {
    let kid: KeyUrl = vault.key(&caller, key)?.key.kid.parse()?;
    Ok(KeyAccess {
        vault,
        caller,
        key: kid.key,
        platform: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::contract::{Place, on_each};
    use std::collections::BTreeSet;
    use vault::WrapAlgorithm::RsaOaep256;

    #[test]
    fn many_at_once_make_one_platform_key() {
        on_each(many_make_one_platform_key);
    }

    fn many_make_one_platform_key(place: &Place) {
        let versions: BTreeSet<String> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let installation = place.installation();
                        let access = installation.wrapping_key(None).unwrap();
                        access.key.version.unwrap()
                    })
                })
                .collect();
            makers.into_iter().map(|m| m.join().unwrap()).collect()
        });
        assert_eq!(versions.len(), 1);

        let installation = place.installation();
        let access = installation.wrapping_key(None).unwrap();
        let (vault, caller) = (&access.vault, &access.caller);
        let wrapped = vault
            .wrap_key(caller, &access.key, RsaOaep256, &[3; 64])
            .unwrap();
        assert_eq!(wrapped.value.len(), 3072 / 8);
        let access = installation
            .unwrapping_key(None, vault.url(), access.key.clone())
            .unwrap();
        let secret = access
            .vault
            .unwrap_key(&access.caller, &access.key, RsaOaep256, &wrapped.value)
            .unwrap();
        assert_eq!(secret.as_slice(), &[3; 64]);
    }

    #[test]
    fn a_permission_taken_from_the_platform_stays_taken() {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(dir.path()).unwrap();
        installation.wrapping_key(None).unwrap();
        let vault = installation.vault("platform").unwrap();
        let platform = installation.platform().object_id;
        vault
            .delete_policy(&installation.operator(), platform)
            .unwrap();
        let error = installation.wrapping_key(None).err().unwrap();
        assert!(error.to_string().contains(&platform.to_string()), "{error}");
    }
}
