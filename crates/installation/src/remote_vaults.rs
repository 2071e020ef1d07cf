//! Remote key vaults: those that are reached over HTTPS.

use time::OffsetDateTime;

use super::vault_backends::{VaultBackend, vault_backend};
use super::vaults::{PLATFORM_VAULT, reserved};
use super::{Installation, InstallationError, Reconcile, retrying};
use crate::catalog::{Change, DesIdentity, Kind, Stored, VaultKind, VaultRecord};
use vault::remote::{
    ManagedIdentity, RemoteVault, check_ca, checked_token_endpoint, checked_vault_url,
};
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
        let VaultBackend::Remote { ca, token_endpoint } = vault_backend(&found) else {
            return Err(not_connected());
        };
        let identity = self.managed(url, token_endpoint, identity)?.ok_or_else(|| InstallationError::Identity {
            vault: url.into(),
            why: "a remote vault needs a managed identity: create a set with --identity, \
                  --identity-endpoint or --federated-client-id, and move disks to it with `sealdisk disk update`",
        })?;
        Ok(RemoteVault::new(url, ca, identity, self.tokens())?)
    }

    /// The identity that a vault elsewhere sees; `None` for one that it cannot know.
    fn managed(
        &self,
        vault: &str,
        token_endpoint: Option<&str>,
        identity: &DesIdentity,
    ) -> Result<Option<ManagedIdentity>, InstallationError> {
        Ok(match identity {
            DesIdentity::None
            | DesIdentity::SystemAssigned
            | DesIdentity::UserAssigned {
                federated_client_id: None,
                ..
            } => None,
            DesIdentity::UserAssigned {
                object_id,
                federated_client_id: Some(client_id),
            } => {
                let endpoint = token_endpoint.ok_or_else(|| InstallationError::Identity {
                    vault: vault.into(),
                    why: "it is not known where its installation gives tokens: connect it again with \
                          --token-endpoint",
                })?;
                let assertion = self.assertion(*object_id);
                Some(ManagedIdentity::federated(endpoint, *client_id, assertion)?)
            }
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

    /// Connects a remote vault under a name, or, when that name is its already, replaces the
    /// certificates that are trusted and where its installation gives tokens. It is not asked
    /// anything: the identities that may are those of disk encryption sets.
    ///
    /// # Errors
    /// [`VaultErrorCode::BadParameter`], `CatalogError::Exists`.
    pub fn connect_vault(
        &self,
        name: &str,
        url: &str,
        ca: Option<String>,
        token_endpoint: Option<String>,
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
        let endpoint = token_endpoint.as_deref();
        endpoint.map(checked_token_endpoint).transpose()?;
        let record = VaultRecord {
            name,
            url,
            kind: VaultKind::Https { ca, token_endpoint },
            created: OffsetDateTime::now_utc(),
        };
        let catalog = self.catalog();
        catalog.refuse_locked(Kind::Vault, &record.name, Change::Write)?;
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
        let catalog = self.catalog();
        catalog.refuse_locked(Kind::Vault, &record.name, Change::Delete)?;
        // A disk whose header names the vault needs it, whatever the catalog says.
        reconcile(self)?;
        Ok(self.catalog().delete_vault(&record.name, rev)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::contract::on_each;
    use vault::VaultSettings;

    #[test]
    fn a_remote_vault_is_known_once_connected_and_kept_while_a_set_needs_it() {
        on_each(|place| {
            let installation = place.installation();
            let url = "https://far.vault.example:8443";
            let system = DesIdentity::SystemAssigned;
            let imds = DesIdentity::Imds { client_id: None };
            let unknown = installation.key_vault_at(url, &imds).err().unwrap();
            assert!(
                unknown.to_string().contains("keyvault connect"),
                "{unknown}"
            );
            let connected = installation.connect_vault("Far", &format!("{url}/"), None, None);
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
                let error = installation
                    .connect_vault(name, url, None, None)
                    .unwrap_err();
                assert!(error.to_string().contains(why), "{error} for {why}");
            }
            let no_ca = installation.connect_vault("far", url, Some("x".into()), None);
            assert!(no_ca.unwrap_err().to_string().contains("CERTIFICATE"));
            let in_clear = Some("http://other.example/token".into());
            let in_clear = installation.connect_vault("far", url, None, in_clear);
            assert!(in_clear.unwrap_err().to_string().contains("https://HOST"));
            let federated = DesIdentity::UserAssigned {
                object_id: uuid::Uuid::new_v4(),
                federated_client_id: Some(uuid::Uuid::new_v4()),
            };
            let unknown = installation.key_vault_at(url, &federated).err().unwrap();
            assert!(
                unknown.to_string().contains("--token-endpoint"),
                "{unknown}"
            );
            let endpoint = Some("https://far.example/adfs/oauth2/v2.0/token".into());
            installation
                .connect_vault("far", url, None, endpoint)
                .unwrap();
            installation.key_vault_at(url, &federated).unwrap();
            let here = installation
                .disconnect_vault("near", |_| Ok(()))
                .unwrap_err();
            assert!(matches!(here, InstallationError::VaultHere { .. }));
            installation.disconnect_vault("far", |_| Ok(())).unwrap();
            assert!(installation.key_vault_at(url, &imds).is_err());
        });
    }
}
