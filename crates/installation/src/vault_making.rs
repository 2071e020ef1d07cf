//! Making the vaults of an installation.
//!
//! # Order of steps
//!
//! Under the lock of the vaults, of a vault in a directory:
//!
//! 1. it is made and filled in a staging directory, which is synced;
//! 2. the directory gets the name of the vault;
//! 3. the catalog has the vault.
//!
//! A crash before 2 leaves a staging directory, which the next maker removes; one after it leaves a complete vault, which
//! the next maker of that name registers.
//!
//! Of a vault on the server of the catalog:
//!
//! 1. it is made and filled in a schema that is called one in the making, with its master key in a staging directory of
//!    this host, which is synced;
//! 2. the directory is called after the vault's id;
//! 3. in one transaction the schema gets the name of the vault, and the catalog has it;
//! 4. the directory gets the name of the vault.
//!
//! A crash before 3 leaves a schema that no vault is in for anybody, and a master key of which nobody has used anything: the
//! next maker removes both. One after it leaves a vault that is complete, whose master key this host finds by its id: who
//! opens the vault here next does step 4. So no master key goes that something may be under, and none stays that would be
//! taken for another vault's.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use database::postgres::{self, ServerUrl};
use time::OffsetDateTime;

use super::files::sync_dir;
use super::server_databases::VAULT;
use super::vault_backends::private_keys;
use super::vault_leftovers::remove_if_there;
use super::vault_places::MADE;
use super::{Installation, InstallationError};
use crate::catalog::{CatalogError, ServerVaults, VaultKind, VaultRecord};
use vault::{
    EmbeddedVault, MasterPlace, PrivateKeys, SystemClock, VaultError, VaultErrorCode, VaultPlace,
    VaultSettings, vault_url,
};

/// A vault is made under this name and gets its own when it is complete; no vault can be called so.
pub(super) const STAGING: &str = ".making";

/// What is to be made.
struct NewVault<'a> {
    record: VaultRecord,
    settings: &'a VaultSettings,
    keys: Arc<dyn PrivateKeys>,
    master: Option<&'a MasterPlace>,
}

impl Installation {
    /// Makes and fills a vault; false when there is one of that name.
    pub(super) fn make_vault(
        &self,
        name: &str,
        settings: &VaultSettings,
        kind: VaultKind,
        master: Option<&MasterPlace>,
        fill: impl FnOnce(&EmbeddedVault) -> Result<(), VaultError>,
    ) -> Result<bool, InstallationError> {
        let record = VaultRecord {
            name: name.into(),
            url: vault_url(name),
            kind,
            created: OffsetDateTime::now_utc(),
        };
        let new = NewVault {
            keys: private_keys(&record)?,
            record,
            settings,
            master,
        };
        let _lock = self.lock_vaults()?;
        self.sweep_vaults()?;
        match self.catalog().vault(name) {
            Ok(known) => return self.refuse_known(&known.record).map(|()| false),
            Err(CatalogError::NotFound { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        let server = self.catalog().server_vaults();
        let is_new = match server.zip(self.place().catalog.server()) {
            None => self.make_in_directory(new, fill)?,
            Some((server, url)) => self.make_on_server(new, server, url, fill)?,
        };
        if is_new {
            self.catalog().note_vault(&vault_url(name), &[])?;
        }
        Ok(true)
    }

    /// Makes a vault in its directory, or takes the one that is there; whether it is new.
    fn make_in_directory(
        &self,
        new: NewVault<'_>,
        fill: impl FnOnce(&EmbeddedVault) -> Result<(), VaultError>,
    ) -> Result<bool, InstallationError> {
        let name = new.record.name.as_str();
        let (vaults, dir) = (self.vaults_dir(), self.vault_dir(name));
        let is_new = !dir.exists();
        if is_new {
            let made = self.in_staging(|staging| {
                let vault = new.create(VaultPlace::in_directory(staging))?;
                Ok(fill(&vault)?)
            })?;
            fs::rename(made, &dir)
                .and_then(|()| sync_dir(&vaults))
                .map_err(|e| self.directory_error(e))?;
        } else if !dir.join("vault.db").exists() {
            return Err(no_vault_in(&dir, name).into());
        }
        let vault = self.open_vault_with(name, new.keys.clone())?;
        if !is_new {
            self.adopt(&vault, &new, &dir.display().to_string())?;
        }
        // No disk asks it before the catalog has it.
        if self.is_lacking(&new.record.url)? {
            vault.mark_incomplete(&self.operator())?;
        }
        let created = vault.created();
        self.catalog().insert_vault(&VaultRecord {
            created,
            ..new.record
        })?;
        Ok(is_new)
    }

    /// Makes a vault on a server, or takes the one that is there; whether it is new.
    fn make_on_server(
        &self,
        new: NewVault<'_>,
        server: &dyn ServerVaults,
        url: &ServerUrl,
        fill: impl FnOnce(&EmbeddedVault) -> Result<(), VaultError>,
    ) -> Result<bool, InstallationError> {
        let name = new.record.name.clone();
        // Its catalog may be one of a backup, which does not know it.
        if server.has_vault_schema(&name)? {
            let vault = self.open_vault_with(&name, new.keys.clone())?;
            self.adopt(&vault, &new, &url.to_string())?;
            let created = vault.created();
            self.catalog().insert_vault(&VaultRecord {
                created,
                ..new.record
            })?;
            return Ok(false);
        }
        self.refuse_left_keys(&name, url)?;
        let staged = server.stage_vault()?;
        let at = url.in_schema(&staged);
        let is_lacking = self.is_lacking(&new.record.url)?;
        let mut whole = None;
        let made = self.in_staging(|staging| {
            let open = move || postgres::open(at.as_str(), &VAULT);
            let vault = new.create(VaultPlace::on_server(staging, open))?;
            fill(&vault)?;
            if is_lacking {
                vault.mark_incomplete(&self.operator())?;
            }
            whole = Some((vault.id(), vault.created()));
            Ok(())
        });
        let (staging, (id, created)) = match (made, whole) {
            (Ok(staging), Some(whole)) => (staging, whole),
            (made, _) => {
                // What is left is of no use to anybody.
                if let Err(error) = server.sweep_vault_schemas() {
                    log::warn!("what was made of the key vault '{name}' stays for now: {error}");
                }
                return made.map(|_| false);
            }
        };
        let vaults = self.vaults_dir();
        let of_id = vaults.join(format!("{MADE}{id}"));
        fs::rename(staging, &of_id)
            .and_then(|()| sync_dir(&vaults))
            .map_err(|e| self.directory_error(e))?;
        let record = VaultRecord {
            created,
            ..new.record
        };
        server.publish_vault(&staged, &record)?;
        self.name_vault_dir(&of_id, &name)?;
        Ok(true)
    }

    /// Does something in the staging directory, which it has when it is there to be renamed. Where that fails nothing of
    /// it is left.
    fn in_staging(
        &self,
        make: impl FnOnce(&Path) -> Result<(), InstallationError>,
    ) -> Result<PathBuf, InstallationError> {
        let staging = self.vaults_dir().join(STAGING);
        let fail = |e: io::Error| self.directory_error(e);
        remove_if_there(&staging).map_err(fail)?;
        DirBuilder::new()
            .mode(0o700)
            .create(&staging)
            .map_err(fail)?;
        if let Err(error) = make(&staging) {
            remove_if_there(&staging).map_err(fail)?;
            return Err(error);
        }
        sync_dir(&staging).map_err(fail)?;
        Ok(staging)
    }

    /// Refuses to make a vault on a server of a name for which this host has a master key, which may be that of a vault
    /// that the server has lost.
    fn refuse_left_keys(&self, name: &str, url: &ServerUrl) -> Result<(), InstallationError> {
        let dir = self.vault_dir(name);
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|e| self.directory_error(e))?,
        };
        for entry in entries.flatten() {
            // How far a log was seen says nothing that a new one needs.
            if entry.file_name() != "vault.seen" {
                let what = format!(
                    "{} is there already, of a key vault '{name}' that {url} has not got: restore the server's backup if \
                     it has lost one, or move the directory away and create the vault again; what is encrypted under a \
                     master key is lost without it",
                    dir.display()
                );
                return Err(VaultError::new(VaultErrorCode::Conflict, what).into());
            }
        }
        remove_if_there(&dir).map_err(|e| self.directory_error(e))
    }

    /// Whether a vault that gets that URL now may lack keys and policies that disks need: another one had the URL when
    /// they were wrapped, and its keys were not destroyed.
    fn is_lacking(&self, url: &str) -> Result<bool, CatalogError> {
        let was_purged = self.catalog().vault_purged_at(url)?.is_some();
        Ok(!was_purged && !self.wrapped_by(url)?.is_empty())
    }

    /// Takes a complete vault that the catalog does not know: one whose maker died before it was
    /// registered, or one that somebody has put there, `at` some place. It is taken only as what was asked for.
    fn adopt(
        &self,
        vault: &EmbeddedVault,
        new: &NewVault<'_>,
        at: &str,
    ) -> Result<(), InstallationError> {
        let name = &new.record.name;
        let is = vault.settings()?;
        let in_token = new.record.kind.token().is_some();
        let differs = if let Some(deletion) = vault.deletion()? {
            Some(format!(
                "is deleted and is purged at {}",
                deletion.scheduled_purge
            ))
        } else if is != *new.settings {
            Some(format!(
                "keeps deleted keys for {} days and has purge protection {}",
                is.retention_days,
                if is.purge_protection { "on" } else { "off" }
            ))
        } else if !in_token && vault.has_token_keys()? {
            Some("has its private keys in a token".into())
        } else if new
            .master
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
                    "{at} has a key vault '{name}' that the catalog does not know; it {differs}, which is \
                     not what is asked for: register it as it is with `sealdisk catalog rebuild`, or \
                     move it away"
                ),
            )
            .into());
        }
        self.grant_operator(vault)
    }

    /// Why a vault of a name that is taken is not made, when there is more to say than that.
    fn refuse_known(&self, known: &VaultRecord) -> Result<(), InstallationError> {
        let name = &known.name;
        if self.is_lost(known) {
            let lost = match self.vault_on_server(name) {
                None => format!("its files in {} are gone", self.vault_dir(name).display()),
                Some(url) => format!("its tables at {url} are gone"),
            };
            return Err(VaultError::new(
                VaultErrorCode::Conflict,
                format!(
                    "the key vault '{name}' is known, but {lost}; restore them from a backup, or give the vault up with \
                     `sealdisk keyvault delete {name} --force`"
                ),
            )
            .into());
        }
        let here = !known.kind.is_remote();
        let deletion = match here.then(|| self.vault_database(name)) {
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

impl NewVault<'_> {
    fn create(&self, at: VaultPlace) -> Result<EmbeddedVault, VaultError> {
        let (name, clock) = (&self.record.name, Arc::new(SystemClock));
        let keys = self.keys.clone();
        EmbeddedVault::create_in(at, name, self.settings, clock, keys, self.master)
    }
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
}
