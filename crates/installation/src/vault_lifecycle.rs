//! Deleting a vault that is kept here, getting it back, and destroying it.
//!
//! A deleted vault stays where it is and says in its own database that it is deleted, so its name stays
//! taken, as in Azure. Purging is done in this order: the keys are destroyed, in a token too, and
//! the catalog notes that; the directory gets another name; the catalog forgets the vault; the directory is removed. After a crash
//! in between the vault is still deleted, or its files are gone and the catalog's row is left: purging
//! it again, or making a vault of that name, goes on from there.
//!
//! Of a vault on a server the schema gets another name in the transaction in which the catalog forgets the vault, and then
//! the directory of this host; what has such a name is removed. Other hosts find by the catalog's note that theirs may go.

use std::path::PathBuf;

use super::vault_leftovers::PURGED;
use super::vaults::PLATFORM_VAULT;
use super::{Installation, InstallationError};
use crate::catalog::{CatalogError, Change, Kind, VaultRecord};
use vault::{VaultDeletion, VaultError, VaultErrorCode};

/// How the directory begins that has what was left of a vault whose database was gone: nobody removes it, since a master
/// key may be in it, and the database may be found again.
const LOST: &str = ".lost-";
/// So many users are named in a message.
const NAMED: usize = 5;

/// Brings the catalog up to what the headers of the disks say, which decides whether a vault is used: the
/// crate `disks`, which reads the headers, has it.
pub type Reconcile = fn(&Installation) -> Result<(), CatalogError>;

/// A vault that is deleted.
pub struct DeletedVault {
    /// Its name.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// Since and until when; `None` for one whose files were gone, which nobody can recover.
    pub deletion: Option<VaultDeletion>,
    /// Whether nobody can purge it earlier.
    pub purge_protection: bool,
    /// Where what was left is of one whose files were gone.
    pub left: Option<PathBuf>,
}

impl Installation {
    /// Deletes a vault that is kept here: from then on it refuses everything, to attached disks too,
    /// until it is recovered. One whose files are gone is forgotten with `force`, which only the operator gives: it cannot
    /// be recovered, whatever protects it from being purged, and its files may only not be to be seen at this moment.
    ///
    /// # Errors
    /// [`InstallationError::VaultUsed`] when something uses its keys and `force` is not given;
    /// [`VaultErrorCode::VaultDeleted`]; [`InstallationError::RemoteVault`].
    pub fn delete_vault(
        &self,
        name: &str,
        force: bool,
        reconcile: Reconcile,
    ) -> Result<DeletedVault, InstallationError> {
        let record = self.kept_here(name)?;
        let catalog = self.catalog();
        catalog.refuse_locked(Kind::Vault, &record.name, Change::Delete)?;
        if !force {
            self.refuse_used(&record, reconcile)?;
        }
        if self.is_lost(&record) {
            return match force {
                true => self.give_up(record),
                false => Err(self.lost(&record.name)),
            };
        }
        let (vault, operator) = (self.vault(&record.name)?, self.operator());
        let held = catalog.hold_unlocked(Kind::Vault, &record.name, Change::Delete)?;
        let deletion = vault.delete(&operator)?;
        drop(held);
        Ok(DeletedVault {
            purge_protection: vault.settings()?.purge_protection,
            name: record.name,
            url: record.url,
            deletion: Some(deletion),
            left: None,
        })
    }

    /// Forgets a vault whose files are gone, and puts aside what is left of them.
    fn give_up(&self, record: VaultRecord) -> Result<DeletedVault, InstallationError> {
        let _lock = self.lock_vaults()?;
        let left = self.forget(&record.name, &format!("{LOST}{}-", record.name))?;
        Ok(DeletedVault {
            name: record.name,
            url: record.url,
            deletion: None,
            purge_protection: false,
            left,
        })
    }

    /// Brings a deleted vault back as it was. One that is governed by roles follows those before and after
    /// (`arm::roles::recover`).
    ///
    /// # Errors
    /// [`VaultErrorCode::Conflict`] for one that is not deleted.
    pub fn recover_vault(&self, name: &str) -> Result<(), InstallationError> {
        let record = self.kept_here(name)?;
        let catalog = self.catalog();
        catalog.refuse_locked(Kind::Vault, &record.name, Change::Write)?;
        Ok(self.vault(&record.name)?.recover(&self.operator())?)
    }

    /// Destroys a deleted vault with all its keys: nothing that they wrapped can be read any more.
    ///
    /// # Errors
    /// [`VaultErrorCode::Conflict`] for one that is not deleted,
    /// [`VaultErrorCode::ForbiddenByPolicy`] for one with purge protection.
    pub fn purge_vault(&self, name: &str) -> Result<(), InstallationError> {
        let record = self.kept_here(name)?;
        let catalog = self.catalog();
        catalog.refuse_locked(Kind::Vault, &record.name, Change::Delete)?;
        self.destroy(&record)
    }

    fn destroy(&self, record: &VaultRecord) -> Result<(), InstallationError> {
        let _lock = self.lock_vaults()?;
        // A purge that was cut off has left a note, and no directory. Of what else is not to be seen nobody knows whether it
        // may go.
        let is_gone = match self.catalog().server_vaults() {
            None => matches!(self.vault_dir(&record.name).try_exists(), Ok(false)),
            Some(_) => self.is_lost(record),
        };
        let is_purged = is_gone && self.catalog().vault_purged_at(&record.url)?.is_some();
        if !is_purged && self.is_lost(record) {
            return Err(self.lost(&record.name));
        }
        if !is_purged {
            self.vault(&record.name)?.purge(&self.operator())?;
            self.catalog().note_purged_vault(&record.url)?;
        }
        self.forget(&record.name, PURGED).map(drop)
    }

    /// The deleted vaults, by name. One that cannot be opened is not among them.
    ///
    /// # Errors
    /// [`CatalogError`](crate::catalog::CatalogError).
    pub fn deleted_vaults(&self) -> Result<Vec<DeletedVault>, InstallationError> {
        let mut found = Vec::new();
        for record in self.vaults_here()? {
            found.extend(self.deleted(&record));
        }
        Ok(found)
    }

    /// A vault, if it is deleted. What cannot be looked at says so when it is used.
    fn deleted(&self, record: &VaultRecord) -> Option<DeletedVault> {
        let database = self.vault_database(&record.name).ok()?;
        Some(DeletedVault {
            name: record.name.clone(),
            url: record.url.clone(),
            deletion: Some(database.deletion().ok()??),
            purge_protection: database.settings().purge_protection,
            left: None,
        })
    }

    /// Destroys the deleted vaults whose retention time is over; their names.
    ///
    /// # Errors
    /// As [`Installation::purge_vault`].
    pub fn purge_due_vaults(&self) -> Result<Vec<String>, InstallationError> {
        if self.catalog().server_vaults().is_some() {
            // What other hosts have purged.
            let _lock = self.lock_vaults()?;
            self.sweep_vaults()?;
        }
        let mut purged = Vec::new();
        for vault in self.deleted_vaults()? {
            if self.purge_due_vault(&vault.name)? {
                purged.push(vault.name);
            }
        }
        Ok(purged)
    }

    /// Destroys a vault if it is deleted and its retention time is over, which no lock forbids; whether it was. It is not
    /// yet where the clock may be wrong by which that is so ([`puts_off_purge`](vault::VaultDatabase::puts_off_purge)).
    ///
    /// # Errors
    /// As [`Installation::purge_vault`].
    pub fn purge_due_vault(&self, name: &str) -> Result<bool, InstallationError> {
        let record = self.catalog().vault(name)?.record;
        let now = time::OffsetDateTime::now_utc();
        let deletion = self.deleted(&record).and_then(|vault| vault.deletion);
        let due = deletion.is_some_and(|deletion| deletion.scheduled_purge <= now);
        if !due || self.vault_database(&record.name)?.puts_off_purge(now)? {
            return Ok(false);
        }
        self.destroy(&self.kept_here(name)?)?;
        Ok(true)
    }

    /// The vaults that are kept in this installation, by name.
    pub fn vaults_here(&self) -> Result<Vec<VaultRecord>, InstallationError> {
        let all = self.catalog().vaults()?.into_iter();
        Ok(all
            .map(|vault| vault.record)
            .filter(|record| !record.kind.is_remote())
            .collect())
    }

    fn kept_here(&self, name: &str) -> Result<VaultRecord, InstallationError> {
        let record = self.catalog().vault(&name.to_ascii_lowercase())?.record;
        if record.kind.is_remote() {
            return Err(InstallationError::RemoteVault {
                name: record.name,
                url: record.url,
            });
        }
        if record.name == PLATFORM_VAULT && !self.is_lost(&record) {
            return Err(VaultError::new(
                VaultErrorCode::BadParameter,
                "the vault 'platform' has the platform-managed key of this installation and cannot be \
                 deleted",
            )
            .into());
        }
        Ok(record)
    }

    /// Gives the directory of a vault, if it is there, a name that begins so, and has the catalog forget the vault. What
    /// was purged is removed then. The caller holds the lock of the vaults.
    fn forget(&self, name: &str, beginning: &str) -> Result<Option<PathBuf>, InstallationError> {
        let server = self.catalog().server_vaults();
        if let Some(server) = server {
            server.retire_vault(name)?;
        }
        let dir = self.vault_dir(name);
        let left = match dir.exists() {
            true => Some(self.put_aside(&dir, beginning)?),
            false => None,
        };
        if server.is_none() {
            self.catalog().forget_vault(name)?;
        }
        self.sweep_vaults()?;
        Ok(left)
    }

    /// Refuses the deletion of a vault that anything uses.
    fn refuse_used(
        &self,
        record: &VaultRecord,
        reconcile: Reconcile,
    ) -> Result<(), InstallationError> {
        // A disk whose header names the vault needs it, whatever the catalog says.
        reconcile(self)?;
        let keys = format!("{}/keys/", record.url);
        let mut users = Vec::new();
        for set in self.catalog().all_des()? {
            if set.record.key_url.starts_with(&keys) {
                users.push(format!("the disk encryption set '{}'", set.record.name));
            }
        }
        users.extend(self.wrapped_by(&record.url)?);
        if users.is_empty() {
            return Ok(());
        }
        let more = users.len().saturating_sub(NAMED);
        users.truncate(NAMED);
        if more > 0 {
            users.push(format!("{more} more"));
        }
        Err(InstallationError::VaultUsed {
            name: record.name.clone(),
            users: users.join(", "),
        })
    }

    /// What is, or was when it left the catalog, under a key of the vault with that URL, in words.
    pub(super) fn wrapped_by(&self, vault_url: &str) -> Result<Vec<String>, CatalogError> {
        let keys = format!("{vault_url}/keys/");
        let in_vault = |url: &str| url.starts_with(&keys);
        let mut users = Vec::new();
        for row in self.catalog().resources()? {
            let resource = row.record;
            let layers = resource.layers.iter().map(|layer| layer.key_url.as_str());
            if layers.chain([resource.key_url.as_str()]).any(in_vault) {
                users.push(format!("the {} '{}'", resource.kind, resource.name));
            }
        }
        for departed in self.catalog().departed()? {
            if departed.keys.iter().any(|key| in_vault(&key.key_url)) {
                users.push(format!(
                    "the {} '{}', which may still exist",
                    departed.kind, departed.name
                ));
            }
        }
        Ok(users)
    }

    /// A vault whose files are gone, as somebody is told who wants to delete it.
    fn lost(&self, name: &str) -> InstallationError {
        let (what, host) = match self.catalog().server_vaults() {
            None => ("files", " on its host"),
            Some(_) => ("tables", ""),
        };
        VaultError::new(
            VaultErrorCode::Conflict,
            format!(
                "the {what} of the key vault '{name}' are gone, so that it can be neither deleted nor recovered: restore \
                 them from a backup, or give the vault up{host} with `sealdisk keyvault delete {name} --force`"
            ),
        )
        .into()
    }
}
