//! The key vaults of an installation, and the vault of its platform-managed key.

use std::fs;
use std::path::Path;

use uuid::Uuid;

use super::known_server::KnownServer;
use super::vault_backends::hsm_keys;
use super::vault_making::STAGING;
use super::{Installation, InstallationError};
use crate::catalog::{CatalogError, Change, DesIdentity, HsmSettings, Kind, VaultKind};
use vault::{
    EmbeddedVault, KeyId, KeySize, KeyType, KeyUrl, KeyVault, MasterPlace, NewKey, Permissions,
    Resealed, VaultError, VaultErrorCode, VaultSettings, embedded_vault_name, moment,
    normal_vault_name, vault_url,
};

/// The vault of the platform-managed key.
pub const PLATFORM_VAULT: &str = "platform";
/// The platform-managed key.
pub(super) const PLATFORM_KEY: &str = "platform-key";

/// URL of the platform-managed key, without a version.
pub fn platform_key_url() -> String {
    let key = KeyId {
        name: PLATFORM_KEY.into(),
        version: None,
    };
    let vault_url = vault_url(PLATFORM_VAULT);
    KeyUrl { vault_url, key }.to_string()
}

/// A file in that vault's directory until somebody was told where its master key is.
const UNSAID: &str = "unsaid";

impl Installation {
    /// Makes a vault in which the operator may do everything.
    ///
    /// # Errors
    /// [`CatalogError::Exists`], [`VaultErrorCode::BadParameter`] for a bad or reserved name.
    pub fn create_vault(
        &self,
        name: &str,
        settings: &VaultSettings,
    ) -> Result<EmbeddedVault, InstallationError> {
        self.create_vault_of(name, settings, VaultKind::Embedded, None)
    }

    /// As [`create_vault`](Self::create_vault), with the master key in a place of its own, and the
    /// private keys in a token if one is given.
    ///
    /// # Errors
    /// As [`create_vault`](Self::create_vault), [`VaultErrorCode::MasterKey`],
    /// [`VaultErrorCode::Unreachable`] for a token that is not there, and
    /// [`VaultErrorCode::HsmAccess`] for one that does not let us in.
    pub fn create_vault_with(
        &self,
        name: &str,
        settings: &VaultSettings,
        hsm: Option<HsmSettings>,
        master: Option<&MasterPlace>,
    ) -> Result<EmbeddedVault, InstallationError> {
        let kind = match hsm {
            None => VaultKind::Embedded,
            Some(hsm) => {
                hsm_keys(&normal_vault_name(name)?, &hsm).check()?;
                VaultKind::Hsm(hsm)
            }
        };
        self.create_vault_of(name, settings, kind, master)
    }

    /// Gives a vault that is kept here a new master key in that place, and destroys the old one.
    ///
    /// # Errors
    /// See [`EmbeddedVault::reseal`].
    pub fn reseal_vault(
        &self,
        name: &str,
        place: &MasterPlace,
    ) -> Result<Resealed, InstallationError> {
        let vault = self.vault(name)?;
        let catalog = self.catalog();
        catalog.refuse_locked(Kind::Vault, name, Change::Write)?;
        Ok(vault.reseal(&self.operator(), place)?)
    }

    fn create_vault_of(
        &self,
        name: &str,
        settings: &VaultSettings,
        kind: VaultKind,
        master: Option<&MasterPlace>,
    ) -> Result<EmbeddedVault, InstallationError> {
        let name = normal_vault_name(name)?;
        if name == PLATFORM_VAULT {
            return Err(reserved().into());
        }
        let catalog = self.catalog();
        catalog.refuse_locked(Kind::Vault, &name, Change::Write)?;
        let operator = self.operator();
        let made = self.make_vault(&name, settings, kind, master, |vault| {
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
    /// [`CatalogError::NotFound`], [`InstallationError::RemoteVault`], or why it cannot be opened.
    pub fn vault(&self, name: &str) -> Result<EmbeddedVault, InstallationError> {
        self.open_vault(&self.catalog().vault(&name.to_ascii_lowercase())?.record)
    }

    /// The vault with that URL, as an envelope or a key URL names it, seen by an identity. One in
    /// this installation knows the identity by the caller that each operation names.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] for a vault that this installation does not have,
    /// [`InstallationError::NotConnected`] for a remote one that is not connected, and
    /// [`InstallationError::Identity`] when the vault cannot know that identity.
    pub fn key_vault_at(
        &self,
        url: &str,
        identity: &DesIdentity,
    ) -> Result<Box<dyn KeyVault>, InstallationError> {
        if let Some(name) = embedded_vault_name(url) {
            return match self.vault(name) {
                Ok(vault) => Ok(Box::new(vault)),
                Err(error) => Err(self.purged(name).transpose()?.unwrap_or(error)),
            };
        }
        Ok(Box::new(self.remote_vault(url, identity)?))
    }

    /// The refusal of a vault that was purged here: nobody can give its keys back. That the catalog does not know a
    /// vault says less than that.
    fn purged(&self, name: &str) -> Option<Result<InstallationError, CatalogError>> {
        let url = vault_url(&name.to_ascii_lowercase());
        let purged = self.catalog().vault_purged_at(&url).transpose()?;
        Some(purged.map(|time| {
            let time = moment(time);
            let message = format!("the key vault '{name}' was purged at {time}, with all its keys");
            VaultError::new(VaultErrorCode::KeyNotFound, message).into()
        }))
    }

    /// The vaults that have an access policy for an identity.
    pub fn vaults_with_policy(&self, object_id: Uuid) -> Result<Vec<String>, InstallationError> {
        let mut found = Vec::new();
        for vault in self.catalog().vaults()? {
            if vault.record.kind.is_remote() {
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

    /// Destroys the deleted keys in devices whose retention time is over, at the end of a command:
    /// no operation waits for a device because of keys that nobody asks for. What fails is logged and
    /// tried again later.
    pub fn finish_due_purges(&self) {
        let vaults = match self.catalog().vaults() {
            Ok(vaults) => vaults,
            Err(e) => return log::error!("the catalog cannot be read: {e}"),
        };
        for vault in vaults {
            if vault.record.kind.token().is_none() {
                continue;
            }
            let name = vault.record.name;
            let purged = self.vault(&name).and_then(|vault| Ok(vault.purge_due()?));
            match purged {
                Ok(due) => {
                    for line in due.failed {
                        log::error!("key vault '{name}': {line}");
                    }
                }
                Err(e) => log::error!("key vault '{name}': {e}"),
            }
        }
    }

    /// The vault of the platform-managed key; the first call makes both.
    pub fn platform_vault(&self) -> Result<EmbeddedVault, InstallationError> {
        match self.vault(PLATFORM_VAULT) {
            Err(InstallationError::Catalog(CatalogError::NotFound { .. })) => {}
            found => return found,
        }
        let (operator, platform) = (self.operator(), self.platform());
        // Key and policies are made with the vault, once: an operator who takes a permission from
        // the platform's identity later is not overruled.
        let settings = VaultSettings::default();
        let kind = VaultKind::Embedded;
        let unsaid = self.vaults_dir().join(STAGING).join(UNSAID);
        self.make_vault(PLATFORM_VAULT, &settings, kind, None, |vault| {
            vault.set_policy(&operator, operator.object_id, &Permissions::all())?;
            vault.set_policy(&operator, platform.object_id, &Permissions::for_disks())?;
            vault.create_key(&operator, PLATFORM_KEY, &NewKey::new(KeySize::Rsa3072))?;
            fs::write(&unsaid, "").map_err(|e| {
                let what = format!("cannot write {}", unsaid.display());
                VaultError::caused(VaultErrorCode::Internal, what, e)
            })
        })?;
        self.vault(PLATFORM_VAULT)
    }

    /// Lets the operator manage a vault that the operator of another catalog made.
    pub fn grant_operator(&self, vault: &EmbeddedVault) -> Result<(), InstallationError> {
        let operator = self.operator();
        let policies = vault.policies()?;
        if !policies.iter().any(|(id, _)| *id == operator.object_id) {
            vault.set_policy(&operator, operator.object_id, &Permissions::all())?;
        }
        Ok(())
    }
}

/// What is to be said when a vault was made whose master key lies beside the disks.
pub fn vault_notice(installation: &Installation, vault: &EmbeddedVault) -> Option<String> {
    let name = vault.name();
    let file = installation.vaults_dir().join(name).join("master.key");
    // The private keys of a token are not under it.
    let beside = vault.key_type() == KeyType::Rsa && file.exists();
    let is_shared = installation.catalog().server_vaults().is_some();
    beside.then(|| match is_shared {
        true => for_other_hosts(name, &file),
        false => format!(
            "note: the keys of the key vault '{name}' are protected by {}, beside the disks that they \
             protect: who gets both can read them. `sealdisk keyvault reseal {name}` moves it to this host's \
             TPM (--tpm2), a systemd credential or another file",
            file.display()
        ),
    })
}

/// What is to be said of the master key of a vault that hosts share, which one of them has.
fn for_other_hosts(name: &str, file: &Path) -> String {
    format!(
        "note: this host alone has the master key of the key vault '{name}', {}: keep a copy of it elsewhere, and copy it \
         to each other host that is to use the vault (mode 0600), or have all take it from a systemd credential (`sealdisk \
         keyvault reseal {name} --master-credential NAME`)",
        file.display()
    )
}

/// What is to be said once, when a command has succeeded since the platform-managed key was made: where
/// its master key is, if that is beside the disks.
pub fn platform_notice(state_dir: &Path) -> Option<String> {
    let dir = state_dir.join("vaults").join(PLATFORM_VAULT);
    fs::remove_file(dir.join(UNSAID)).ok()?;
    let file = dir.join("master.key");
    let is_shared = matches!(KnownServer::read(state_dir), Ok(Some(_)));
    file.exists().then(|| match is_shared {
        true => for_other_hosts(PLATFORM_VAULT, &file),
        false => format!(
            "note: the platform-managed key was made; it is protected by {}, beside the disks that it \
             protects: who gets both can read them. `sealdisk keyvault reseal platform` moves it to this \
             host's TPM (--tpm2), a systemd credential or another file",
            file.display()
        ),
    })
}

pub(super) fn reserved() -> VaultError {
    VaultError::new(
        VaultErrorCode::BadParameter,
        "the name 'platform' is reserved for the vault of the platform-managed key, which is made \
         with the first disk that uses it; choose another name",
    )
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
    fn reserved_and_foreign_names_are_refused() {
        let (_dir, installation) = installation();
        for name in ["platform", "Platform", "..", "a/b"] {
            let error = installation
                .create_vault(name, &VaultSettings::default())
                .err()
                .unwrap();
            let InstallationError::Vault(error) = error else {
                panic!("{name}: {error}");
            };
            assert_eq!(error.code, VaultErrorCode::BadParameter, "{name}");
        }
    }
}
