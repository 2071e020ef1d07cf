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
use super::vault_backends::{VaultBackend, hsm_keys, vault_backend};
use super::{Installation, InstallationError};
use crate::catalog::{
    CatalogError, Change, DesIdentity, HsmSettings, Kind, VaultKind, VaultRecord,
};
use vault::{
    EmbeddedVault, KeyId, KeySize, KeyType, KeyUrl, KeyVault, MasterPlace, NewKey, Permissions,
    PrivateKeys, Resealed, SystemClock, VaultError, VaultErrorCode, VaultSettings,
    embedded_vault_name, moment, normal_vault_name, vault_url,
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
        let record = self.catalog().vault(&name.to_ascii_lowercase())?.record;
        let dir = self.vaults_dir().join(&record.name);
        Ok(open(&dir, &record.name, private_keys(&record)?)?)
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

    /// Makes and fills a vault; false when there is one of that name.
    ///
    /// It is made in a staging directory, synced, renamed and then registered, under a lock. A
    /// crash before the rename leaves a staging directory, which the next maker removes; one after
    /// it leaves a complete vault, which the next maker of that name registers.
    fn make_vault(
        &self,
        name: &str,
        settings: &VaultSettings,
        kind: VaultKind,
        master: Option<&MasterPlace>,
        fill: impl FnOnce(&EmbeddedVault) -> Result<(), VaultError>,
    ) -> Result<bool, InstallationError> {
        let vaults = self.vaults_dir();
        let dir = vaults.join(name);
        let fail = |source| InstallationError::Directory {
            path: dir.clone(),
            source,
        };
        let mut record = VaultRecord {
            name: name.into(),
            url: vault_url(name),
            kind,
            created: OffsetDateTime::now_utc(),
        };
        let keys = private_keys(&record)?;
        let _lock = lock(&vaults).map_err(fail)?;
        Self::sweep_purged(&vaults).map_err(fail)?;
        match self.catalog().vault(name) {
            Ok(known) => return self.refuse_known(&known.record).map(|()| false),
            Err(CatalogError::NotFound { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        let is_new = !dir.exists();
        if !is_new {
            self.adopt(&dir, settings, master, &record, keys.clone())?;
        } else {
            let staging = vaults.join(STAGING);
            remove_if_there(&staging).map_err(fail)?;
            DirBuilder::new()
                .mode(0o700)
                .create(&staging)
                .map_err(fail)?;
            let clock = Arc::new(SystemClock);
            let made =
                EmbeddedVault::create_at(&staging, name, settings, clock, keys.clone(), master)
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
        let vault = open(&dir, name, keys)?;
        // No disk asks it before the catalog has it.
        if self.is_lacking(&record.url)? {
            vault.mark_incomplete(&self.operator())?;
        }
        record.created = vault.created();
        self.catalog().insert_vault(&record)?;
        if is_new {
            self.catalog().note_vault(&record.url, &[])?;
        }
        Ok(true)
    }
}

impl Installation {
    /// Whether a vault that gets that URL now may lack keys and policies that disks need: another one had the URL when
    /// they were wrapped, and its keys were not destroyed.
    fn is_lacking(&self, url: &str) -> Result<bool, CatalogError> {
        let was_purged = self.catalog().vault_purged_at(url)?.is_some();
        Ok(!was_purged && !self.wrapped_by(url)?.is_empty())
    }

    /// Takes a complete vault that the catalog does not know: one whose maker died before it was
    /// registered, or one that somebody has put there. It is taken only as what was asked for.
    fn adopt(
        &self,
        dir: &Path,
        wanted: &VaultSettings,
        master: Option<&MasterPlace>,
        record: &VaultRecord,
        keys: Arc<dyn PrivateKeys>,
    ) -> Result<(), InstallationError> {
        let name = &record.name;
        if !dir.join("vault.db").exists() {
            return Err(no_vault_in(dir, name).into());
        }
        let vault = open(dir, name, keys)?;
        let is = vault.settings()?;
        let in_token = record.kind.token().is_some();
        let differs = if let Some(deletion) = vault.deletion()? {
            Some(format!(
                "is deleted and is purged at {}",
                deletion.scheduled_purge
            ))
        } else if is != *wanted {
            Some(format!(
                "keeps deleted keys for {} days and has purge protection {}",
                is.retention_days,
                if is.purge_protection { "on" } else { "off" }
            ))
        } else if !in_token && vault.has_token_keys()? {
            Some("has its private keys in a token".into())
        } else if master
            .is_some_and(|place| !vault.master_source().is_ok_and(|is| place.is(is.as_ref())))
        {
            Some("has its master key in another place".into())
        } else {
            None
        };
        if let Some(differs) = differs {
            return Err(VaultError::new(
                VaultErrorCode::Conflict,
                format!(
                    "{} has a key vault '{name}' that the catalog does not know; it {differs}, which is \
                     not what is asked for: register it as it is with `sealdisk catalog rebuild`, or \
                     move it away",
                    dir.display()
                ),
            )
            .into());
        }
        self.grant_operator(&vault)
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

    /// Why a vault of a name that is taken is not made, when there is more to say than that.
    fn refuse_known(&self, known: &VaultRecord) -> Result<(), InstallationError> {
        let name = &known.name;
        if self.is_lost(known) {
            return Err(VaultError::new(
                VaultErrorCode::Conflict,
                format!(
                    "the key vault '{name}' is known, but its files in {} are gone; restore them from a \
                     backup, or give the vault up with `sealdisk keyvault delete {name} --force`",
                    self.vaults_dir().join(name).display()
                ),
            )
            .into());
        }
        let here = !known.kind.is_remote();
        let deletion = match here.then(|| self.vault(name)) {
            Some(Ok(vault)) => vault.deletion()?,
            _ => None,
        };
        match deletion {
            Some(_) => Err(VaultError::new(
                VaultErrorCode::VaultDeleted,
                format!(
                    "a key vault '{name}' is deleted and can be recovered; its name is free once it is \
                     purged: `sealdisk keyvault recover {name}` or `sealdisk keyvault purge {name}`"
                ),
            )
            .into()),
            None => Ok(()),
        }
    }
}

pub(super) fn open(
    dir: &Path,
    name: &str,
    keys: Arc<dyn PrivateKeys>,
) -> Result<EmbeddedVault, VaultError> {
    EmbeddedVault::open_with(dir, name, Arc::new(SystemClock), keys)
}

/// A directory that has the name of a vault that is to be made, and no database in it.
fn no_vault_in(dir: &Path, name: &str) -> VaultError {
    let has_key = dir.join("master.key").exists();
    let what = match has_key {
        true => "a master key, but no vault.db",
        false => "no vault.db",
    };
    let beware = match has_key {
        true => "; what is encrypted under that key is lost without it",
        false => "",
    };
    VaultError::new(
        VaultErrorCode::Conflict,
        format!(
            "{} is there already, with {what}, so that no new key vault '{name}' is made in it: restore its \
             files from a backup and run `sealdisk catalog rebuild`, or move the directory away and create \
             the vault again{beware}",
            dir.display()
        ),
    )
}

/// What is to be said when a vault was made whose master key lies beside the disks.
pub fn vault_notice(installation: &Installation, vault: &EmbeddedVault) -> Option<String> {
    let name = vault.name();
    let file = installation.vaults_dir().join(name).join("master.key");
    // The private keys of a token are not under it.
    let beside = vault.key_type() == KeyType::Rsa && file.exists();
    beside.then(|| {
        format!(
            "note: the keys of the key vault '{name}' are protected by {}, beside the disks that they \
             protect: who gets both can read them. `sealdisk keyvault reseal {name}` moves it to this host's \
             TPM (--tpm2), a systemd credential or another file",
            file.display()
        )
    })
}

/// What is to be said once, when a command has succeeded since the platform-managed key was made: where
/// its master key is, if that is beside the disks.
pub fn platform_notice(state_dir: &Path) -> Option<String> {
    let dir = state_dir.join("vaults").join(PLATFORM_VAULT);
    fs::remove_file(dir.join(UNSAID)).ok()?;
    let file = dir.join("master.key");
    file.exists().then(|| {
        format!(
            "note: the platform-managed key was made; it is protected by {}, beside the disks that it \
             protects: who gets both can read them. `sealdisk keyvault reseal platform` moves it to this \
             host's TPM (--tpm2), a systemd credential or another file",
            file.display()
        )
    })
}

/// The private keys of a vault that is kept here.
fn private_keys(record: &VaultRecord) -> Result<Arc<dyn PrivateKeys>, InstallationError> {
    match vault_backend(record) {
        VaultBackend::Local(keys) => Ok(keys),
        VaultBackend::Remote { .. } => Err(InstallationError::RemoteVault {
            name: record.name.clone(),
            url: record.url.clone(),
        }),
    }
}

pub(super) fn reserved() -> VaultError {
    VaultError::new(
        VaultErrorCode::BadParameter,
        "the name 'platform' is reserved for the vault of the platform-managed key, which is made \
         with the first disk that uses it; choose another name",
    )
}

/// Makers of vaults take turns; the kernel releases the lock of one that dies.
pub(super) fn lock(vaults: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(vaults.join(".lock"))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

pub(super) fn remove_if_there(dir: &Path) -> io::Result<()> {
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
            .make_vault(
                "vault",
                &VaultSettings::default(),
                VaultKind::Embedded,
                None,
                refuse,
            )
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
            let InstallationError::Vault(error) = error else {
                panic!("{name}: {error}");
            };
            assert_eq!(error.code, VaultErrorCode::BadParameter, "{name}");
        }
    }
}
