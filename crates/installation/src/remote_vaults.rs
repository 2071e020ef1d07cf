//! Remote key vaults: those that are reached over HTTPS.

use time::OffsetDateTime;

use super::vault_backends::{VaultBackend, vault_backend};
use super::vaults::{PLATFORM_VAULT, reserved};
use super::{Installation, InstallationError, Reconcile, retrying};
use crate::catalog::{DesIdentity, Stored, VaultKind, VaultRecord};
use vault::remote::{ManagedIdentity, RemoteVault, check_ca, checked_vault_url};
use vault::{VaultError, VaultErrorCode, embedded_vault_name, normal_vault_name};

impl Installation {
    /// The vault over HTTPS with that URL, seen by a managed identity.
    ///
    /// # Errors
    /// [`InstallationError::NotConnected`], [`InstallationError::Identity`].
    pub fn remote_vault(
        &self,
        url: &str,
        identity: &DesIdentity,
    ) -> Result<RemoteVault, InstallationError> {
        let found = self.catalog().vault_by_url(url)?.map(|vault| vault.record);
        let not_connected = || InstallationError::NotConnected { url: url.into() };
        let found = found.ok_or_else(not_connected)?;
        let VaultBackend::Remote { ca } = vault_backend(&found) else {
            return Err(not_connected());
        };
        let identity = managed(identity)?.ok_or_else(|| InstallationError::Identity {
            vault: url.into(),
            why: "a remote vault needs a managed identity: create a set with --identity or \
                  --identity-endpoint, and move disks to it with `sealdisk disk update`",
        })?;
        Ok(RemoteVault::new(url, ca, identity, self.tokens())?)
    }

    /// Connects a remote vault under a name, or, when that name is its already, replaces the
    /// certificates that are trusted. It is not asked anything: the identities that may are those
    /// of disk encryption sets.
    ///
    /// # Errors
    /// [`VaultErrorCode::BadParameter`], `CatalogError::Exists`.
    pub fn connect_vault(
        &self,
        name: &str,
        url: &str,
        ca: Option<String>,
    ) -> Result<VaultRecord, InstallationError> {
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
        retrying(|| match self.catalog().vault(&record.name) {
            Ok(Stored { rev, record: known }) if known.url == record.url => {
                let record = VaultRecord {
                    created: known.created,
                    ..record.clone()
                };
                self.catalog().update_vault(rev, &record)?;
                Ok(record)
            }
            _ => {
                self.catalog().insert_vault(&record)?;
                Ok(record.clone())
            }
        })
    }

    /// Disconnects a remote vault.
    ///
    /// # Errors
    /// `CatalogError::VaultInUse` while a disk encryption set, or a disk of one, needs it;
    /// [`InstallationError::VaultHere`] for one that is kept here.
    pub fn disconnect_vault(
        &self,
        name: &str,
        reconcile: Reconcile,
    ) -> Result<(), InstallationError> {
        retrying(|| self.try_disconnect_vault(name, reconcile))
    }

    fn try_disconnect_vault(
        &self,
        name: &str,
        reconcile: Reconcile,
    ) -> Result<(), InstallationError> {
        let Stored { rev, record } = self.catalog().vault(&name.to_ascii_lowercase())?;
        if !record.kind.is_remote() {
            return Err(InstallationError::VaultHere { name: record.name });
        }
        // A disk whose header names the vault needs it, whatever the catalog says.
        reconcile(self)?;
        Ok(self.catalog().delete_vault(&record.name, rev)?)
    }
}

/// The managed identity that a set names; `None` for one that was made with the set.
fn managed(identity: &DesIdentity) -> Result<Option<ManagedIdentity>, VaultError> {
    Ok(match identity {
        DesIdentity::None | DesIdentity::SystemAssigned => None,
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

#[cfg(test)]
mod tests {
    use super::*;
    use vault::VaultSettings;

    #[test]
    fn a_remote_vault_is_known_once_connected_and_kept_while_a_set_needs_it() {
        let dir = tempfile::tempdir().unwrap();
        let installation = Installation::open(dir.path()).unwrap();
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
        let remote = installation.vault("far").err().unwrap();
        assert!(remote.to_string().contains(url), "{remote}");

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
        let here = installation
            .disconnect_vault("near", |_| Ok(()))
            .unwrap_err();
        assert!(matches!(here, InstallationError::VaultHere { .. }));
        installation.disconnect_vault("far", |_| Ok(())).unwrap();
        assert!(installation.key_vault_at(url, &imds).is_err());
    }
}
