//! The key vaults of an installation, and the vault of its platform-managed key.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use time::OffsetDateTime;
use uuid::Uuid;

use super::files::sync_dir;
use super::{ControlError, Installation, disks};
use crate::catalog::{CatalogError, DesIdentity, Kind, Stored, VaultKind, VaultRecord};
use crate::vault::remote::{ManagedIdentity, RemoteVault, check_ca, checked_vault_url};
use crate::vault::{
    EmbeddedVault, KeySize, KeyVault, NewKey, Permissions, SystemClock, VaultError, VaultErrorCode,
    VaultSettings, embedded_vault_name, normal_vault_name, vault_url,
};

/// The vault of the platform-managed key.
pub(super) const PLATFORM_VAULT: &str = "platform";
/// The platform-managed key.
pub(super) const PLATFORM_KEY: &str = "platform-key";

/// A vault is made under this name and gets its own when it is complete; no vault can be called so.
const STAGING: &str = ".making";

impl Installation {
    /// Makes a vault in which the operator may do everything.
    ///
    /// # Errors
    /// [`CatalogError::Exists`], [`VaultErrorCode::BadParameter`] for a bad or reserved name.
    pub fn create_vault(
        &self,
        name: &str,
        settings: &VaultSettings,
    ) -> Result<EmbeddedVault, ControlError> {
        let name = normal_vault_name(name)?;
        if name == PLATFORM_VAULT {
            return Err(reserved().into());
        }
        let operator = self.operator();
        let made = self.make_vault(&name, settings, |vault| {
            vault.set_policy(&operator, operator.object_id, &Permissions::all())
        })?;
        match made {
            true => self.vault(&name),
            false => Err(CatalogError::Exists {
                kind: Kind::Vault,
                name,
            }
            .into()),
        }
    }

    /// The vault of that name, which is kept in this installation.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`ControlError::VaultElsewhere`], or why it cannot be opened.
    pub fn vault(&self, name: &str) -> Result<EmbeddedVault, ControlError> {
        let record = self.catalog().vault(&name.to_ascii_lowercase())?.record;
        if matches!(record.kind, VaultKind::Https { .. }) {
            return Err(ControlError::VaultElsewhere {
                name: record.name,
                url: record.url,
            });
        }
        let dir = self.vaults_dir().join(&record.name);
        let clock = Arc::new(SystemClock);
        Ok(EmbeddedVault::open(&dir, &record.name, clock)?)
    }

    /// The vault with that URL, as an envelope or a key URL names it, seen by an identity. One in
    /// this installation knows the identity by the caller that each operation names.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] for a vault that this installation does not have,
    /// [`ControlError::NotConnected`] for one elsewhere that it does not know, and
    /// [`ControlError::Identity`] when the vault cannot know that identity.
    pub(super) fn key_vault_at(
        &self,
        url: &str,
        identity: &DesIdentity,
    ) -> Result<Box<dyn KeyVault>, ControlError> {
        if let Some(name) = embedded_vault_name(url) {
            return Ok(Box::new(self.vault(name)?));
        }
        Ok(Box::new(self.remote_vault(url, identity)?))
    }

    /// As [`key_vault_at`](Self::key_vault_at), of a vault over HTTPS.
    pub(super) fn remote_vault(
        &self,
        url: &str,
        identity: &DesIdentity,
    ) -> Result<RemoteVault, ControlError> {
        let found = self.catalog().vault_by_url(url)?.map(|vault| vault.record);
        let Some(VaultRecord {
            kind: VaultKind::Https { ca },
            ..
        }) = found
        else {
            return Err(ControlError::NotConnected { url: url.into() });
        };
        let identity = managed(identity)?.ok_or_else(|| ControlError::Identity {
            vault: url.into(),
            why: "it is elsewhere and needs a managed identity: make a set with --identity or \
                  --identity-endpoint, and move disks to it with `sealdisk disk update`",
        })?;
        Ok(RemoteVault::new(
            url,
            ca.as_deref(),
            identity,
            self.tokens(),
        )?)
    }

    /// Makes a vault elsewhere known under a name, or, when that name is its already, replaces the
    /// certificates that vouch for it. It is not asked anything: the identities that may are those
    /// of disk encryption sets.
    ///
    /// # Errors
    /// [`VaultErrorCode::BadParameter`], [`CatalogError::Exists`].
    pub fn connect_vault(
        &self,
        name: &str,
        url: &str,
        ca: Option<String>,
    ) -> Result<VaultRecord, ControlError> {
        let name = normal_vault_name(name)?;
        let url = checked_vault_url(url)?;
        if name == PLATFORM_VAULT {
            return Err(reserved().into());
        }
        if embedded_vault_name(&url).is_some() {
            let message = format!(
                "{url} means a vault of this installation; give the port at which another \
                 installation serves it"
            );
            return Err(VaultError::new(VaultErrorCode::BadParameter, message).into());
        }
        ca.as_deref().map(check_ca).transpose()?;
        let record = VaultRecord {
            name,
            url,
            kind: VaultKind::Https { ca },
            created: OffsetDateTime::now_utc(),
        };
        match self.catalog().vault(&record.name) {
            Ok(Stored { rev, record: known }) if known.url == record.url => {
                let record = VaultRecord {
                    created: known.created,
                    ..record
                };
                self.catalog().update_vault(rev, &record)?;
                Ok(record)
            }
            _ => {
                self.catalog().insert_vault(&record)?;
                Ok(record)
            }
        }
    }

    /// Forgets a vault elsewhere.
    ///
    /// # Errors
    /// [`CatalogError::VaultInUse`] while a disk encryption set, or a disk of one, needs it;
    /// [`ControlError::VaultHere`] for one that is kept here.
    pub fn disconnect_vault(&self, name: &str) -> Result<(), ControlError> {
        let Stored { rev, record } = self.catalog().vault(&name.to_ascii_lowercase())?;
        if !matches!(record.kind, VaultKind::Https { .. }) {
            return Err(ControlError::VaultHere { name: record.name });
        }
        // A disk whose header names the vault needs it, whatever the catalog says.
        disks::reconcile(self)?;
        Ok(self.catalog().delete_vault(&record.name, rev)?)
    }

    /// The vaults that have an access policy for an identity.
    pub(super) fn vaults_with_policy(&self, object_id: Uuid) -> Result<Vec<String>, ControlError> {
        let mut found = Vec::new();
        for vault in self.catalog().vaults()? {
            if matches!(vault.record.kind, VaultKind::Https { .. }) {
                continue;
            }
            let name = vault.record.name;
            // A vault that cannot be opened now says so when it is used; this is only a courtesy.
            let Ok(policies) = self.vault(&name).and_then(|v| Ok(v.policies()?)) else {
                log::warn!("the key vault '{name}' could not be searched for access policies");
                continue;
            };
            if policies.iter().any(|(id, _)| *id == object_id) {
                found.push(name);
            }
        }
        Ok(found)
    }

    /// The vault of the platform-managed key; the first call makes both.
    pub(super) fn platform_vault(&self) -> Result<EmbeddedVault, ControlError> {
        match self.vault(PLATFORM_VAULT) {
            Err(ControlError::Catalog(CatalogError::NotFound { .. })) => {}
            found => return found,
        }
        let (operator, platform) = (self.operator(), self.platform());
        // Key and policies are made with the vault, once: an operator who takes a permission from
        // the platform's identity later is not overruled.
        let settings = VaultSettings::default();
        self.make_vault(PLATFORM_VAULT, &settings, |vault| {
            vault.set_policy(&operator, operator.object_id, &Permissions::all())?;
            vault.set_policy(&operator, platform.object_id, &Permissions::for_disks())?;
            vault.create_key(&operator, PLATFORM_KEY, &NewKey::new(KeySize::Rsa3072))?;
            Ok(())
        })?;
        self.vault(PLATFORM_VAULT)
    }

    /// Makes and fills a vault; false when there is one of that name.
    ///
    /// It is made in a staging directory, synced, renamed and then registered, under a lock. A
    /// crash before the rename leaves a staging directory, which the next maker removes; one after
    /// it leaves a complete vault, which the next maker of that name registers.
    fn make_vault(
        &self,
        name: &str,
        settings: &VaultSettings,
        fill: impl FnOnce(&EmbeddedVault) -> Result<(), VaultError>,
    ) -> Result<bool, ControlError> {
        let vaults = self.vaults_dir();
        let dir = vaults.join(name);
        let fail = |source| ControlError::Directory {
            path: dir.clone(),
            source,
        };
        let _lock = lock(&vaults).map_err(fail)?;
        match self.catalog().vault(name) {
            Ok(_) => return Ok(false),
            Err(CatalogError::NotFound { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        if !dir.exists() {
            let staging = vaults.join(STAGING);
            remove_if_there(&staging).map_err(fail)?;
            DirBuilder::new()
                .mode(0o700)
                .create(&staging)
                .map_err(fail)?;
            let made = EmbeddedVault::create(&staging, name, settings, Arc::new(SystemClock))
                .and_then(|vault| fill(&vault));
            if let Err(e) = made {
                remove_if_there(&staging).map_err(fail)?;
                return Err(e.into());
            }
            sync_dir(&staging)
                .and_then(|()| fs::rename(&staging, &dir))
                .and_then(|()| sync_dir(&vaults))
                .map_err(fail)?;
        }
        let vault = EmbeddedVault::open(&dir, name, Arc::new(SystemClock))?;
        self.catalog().insert_vault(&VaultRecord {
            name: name.into(),
            url: vault_url(name),
            kind: VaultKind::Embedded,
            created: vault.created(),
        })?;
        Ok(true)
    }
}

fn reserved() -> VaultError {
    VaultError::new(
        VaultErrorCode::BadParameter,
        "the name 'platform' is reserved for the vault of the platform-managed key, which is made \
         with the first disk that uses it; choose another name",
    )
}

/// The managed identity that a set names; `None` for one that was made with the set.
fn managed(identity: &DesIdentity) -> Result<Option<ManagedIdentity>, VaultError> {
    Ok(match identity {
        DesIdentity::SystemAssigned => None,
        DesIdentity::Imds { client_id } => Some(ManagedIdentity::Imds {
            client_id: *client_id,
        }),
        DesIdentity::Endpoint {
            url,
            header_file,
            client_id,
        } => Some(ManagedIdentity::endpoint(
            url,
            header_file.clone(),
            *client_id,
        )?),
    })
}

/// Makers of vaults take turns; the kernel releases the lock of one that dies.
fn lock(vaults: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(vaults.join(".lock"))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

fn remove_if_there(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installation() -> (tempfile::TempDir, Installation) {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(dir.path()).unwrap();
        (dir, installation)
    }

    #[test]
    fn what_a_crash_leaves_is_taken_up_or_cleared_away() {
        let (_dir, installation) = installation();
        let vaults = installation.vaults_dir();
        // Died in the middle of making it.
        fs::create_dir(vaults.join(STAGING)).unwrap();
        fs::write(vaults.join(STAGING).join("vault.db"), "half").unwrap();
        let vault = installation
            .create_vault("first", &VaultSettings::default())
            .unwrap();
        assert!(!vaults.join(STAGING).exists());
        // Died between the rename and the registration.
        let source = tempfile::tempdir().unwrap();
        let other = Installation::open(source.path()).unwrap();
        other
            .create_vault("second", &VaultSettings::default())
            .unwrap();
        fs::rename(other.vaults_dir().join("second"), vaults.join("second")).unwrap();
        assert!(installation.vault("second").is_err());
        installation
            .create_vault("second", &VaultSettings::default())
            .unwrap();
        installation.vault("second").unwrap();
        drop(vault);
        let error = installation
            .create_vault("First", &VaultSettings::default())
            .err()
            .unwrap();
        assert!(error.to_string().contains("exists already"), "{error}");
    }

    #[test]
    fn a_failed_making_leaves_nothing() {
        let (_dir, installation) = installation();
        let refuse = |_: &EmbeddedVault| Err(VaultError::new(VaultErrorCode::Internal, "no"));
        installation
            .make_vault("vault", &VaultSettings::default(), refuse)
            .err()
            .unwrap();
        let left: Vec<_> = fs::read_dir(installation.vaults_dir())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, [".lock"]);
        assert!(installation.catalog().vaults().unwrap().is_empty());
    }

    #[test]
    fn reserved_and_foreign_names_are_refused() {
        let (_dir, installation) = installation();
        for name in ["platform", "Platform", "..", "a/b"] {
            let error = installation
                .create_vault(name, &VaultSettings::default())
                .err()
                .unwrap();
            let ControlError::Vault(error) = error else {
                panic!("{name}: {error}");
            };
            assert_eq!(error.code, VaultErrorCode::BadParameter, "{name}");
        }
    }

    #[test]
    fn a_vault_elsewhere_is_known_once_connected_and_kept_while_a_set_needs_it() {
        let (_dir, installation) = installation();
        let url = "https://far.vault.example:8443";
        let system = DesIdentity::SystemAssigned;
        let imds = DesIdentity::Imds { client_id: None };
        let unknown = installation.key_vault_at(url, &imds).err().unwrap();
        assert!(
            unknown.to_string().contains("keyvault connect"),
            "{unknown}"
        );
        let connected = installation.connect_vault("Far", &format!("{url}/"), None);
        assert_eq!(connected.unwrap().name, "far");
        installation.key_vault_at(url, &imds).unwrap();
        let identity = installation.key_vault_at(url, &system).err().unwrap();
        assert!(identity.to_string().contains("--identity"), "{identity}");
        let elsewhere = installation.vault("far").err().unwrap();
        assert!(elsewhere.to_string().contains(url), "{elsewhere}");

        installation
            .create_vault("near", &VaultSettings::default())
            .unwrap();
        for (name, url, why) in [
            ("far", "https://other.example", "exists already"),
            ("near", "https://other.example", "exists already"),
            ("again", url, "exists already"),
            (
                "x1y",
                "https://near.vault.localhost",
                "of this installation",
            ),
            ("platform", "https://other.example", "reserved"),
            ("other", "http://other.example", "https://HOST"),
        ] {
            let error = installation.connect_vault(name, url, None).unwrap_err();
            assert!(error.to_string().contains(why), "{error} for {why}");
        }
        let no_ca = installation.connect_vault("far", url, Some("x".into()));
        assert!(no_ca.unwrap_err().to_string().contains("CERTIFICATE"));
        let here = installation.disconnect_vault("near").unwrap_err();
        assert!(matches!(here, ControlError::VaultHere { .. }));
        installation.disconnect_vault("far").unwrap();
        assert!(installation.key_vault_at(url, &imds).is_err());
    }
}
