//! Soft delete of the vault itself. It is marked in the vault's own database, so that every process
//! that has it open, and every disk that uses its keys, finds it deleted at its next operation.

use database::Connection;
use time::Duration;

use super::doubt::WHOLE_VAULT;
use super::subject::{Subject, VAULT_DELETE, VAULT_PURGE, VAULT_RECOVER};
use super::vault::EmbeddedVault;
use crate::clock::moment;
use crate::refusal;
use crate::store::{self, DueKind, VaultDeletion};
use crate::{Caller, VaultError, VaultErrorCode};

impl EmbeddedVault {
    /// Deletes the vault; it can be recovered until its retention time is over. As for policies, who
    /// may reach the vault's files manages it.
    ///
    /// # Errors
    /// [`VaultErrorCode::VaultDeleted`] for one that is deleted already.
    pub fn delete(&self, caller: &Caller) -> Result<VaultDeletion, VaultError> {
        self.audited(caller, &Subject::vault(VAULT_DELETE), |db| {
            if let Some(deletion) = store::deletion(db)? {
                return Err(refusal::vault_deleted(&self.name, &deletion));
            }
            let now = self.clock.now();
            let days = self.settings_in(db)?.retention_days;
            let deletion = VaultDeletion {
                deleted: now,
                scheduled_purge: now + Duration::days(days.into()),
            };
            store::set_deletion(db, Some(&deletion))?;
            Ok(deletion)
        })
    }

    /// Brings a deleted vault back, with all that is in it.
    ///
    /// # Errors
    /// [`VaultErrorCode::Conflict`] for one that is not deleted, or is being purged.
    pub fn recover(&self, caller: &Caller) -> Result<(), VaultError> {
        self.audited(caller, &Subject::vault(VAULT_RECOVER), |db| {
            if self.find_deletion(db)?.scheduled_purge <= self.clock.now() {
                return Err(VaultError::new(
                    VaultErrorCode::Conflict,
                    format!("the key vault '{}' is being purged", self.name),
                ));
            }
            // What was noted of this deletion says nothing of the next one.
            store::clear_retry(db, DueKind::Purge, WHOLE_VAULT)?;
            store::set_deletion(db, None)
        })
    }

    /// Whether, when and until when the vault is deleted.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn deletion(&self) -> Result<Option<VaultDeletion>, VaultError> {
        self.read(store::deletion)
    }

    /// Whether a private key of the vault is in a token.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn has_token_keys(&self) -> Result<bool, VaultError> {
        self.read(store::has_token_keys)
    }

    /// Destroys all keys of a deleted vault for good, those in a token too; its files are the caller's
    /// to remove.
    ///
    /// The vault is marked first, so that nobody can recover it any more. The keys are destroyed outside
    /// of any transaction, because a token may hang; what fails is tried again by the next call.
    ///
    /// # Errors
    /// [`VaultErrorCode::Conflict`] for a vault that is not deleted,
    /// [`VaultErrorCode::ForbiddenByPolicy`] for one with purge protection before its time; what the token
    /// says.
    pub fn purge(&self, caller: &Caller) -> Result<(), VaultError> {
        let rows = self.audited(caller, &Subject::vault(VAULT_PURGE), |db| {
            let deletion = self.find_deletion(db)?;
            let now = self.clock.now();
            if deletion.scheduled_purge > now && self.settings_in(db)?.purge_protection {
                return Err(VaultError::new(
                    VaultErrorCode::ForbiddenByPolicy,
                    format!(
                        "the key vault '{}' has purge protection: nobody can purge it before {}",
                        self.name,
                        moment(deletion.scheduled_purge)
                    ),
                ));
            }
            let marked = VaultDeletion {
                scheduled_purge: deletion.scheduled_purge.min(now),
                ..deletion
            };
            store::set_deletion(db, Some(&marked))?;
            let mut rows = Vec::new();
            for name in store::all_key_names(db)? {
                rows.extend(store::key_versions(db, &name, 0, usize::MAX)?);
            }
            Ok(rows)
        })?;
        self.destroy(&rows)
    }

    fn find_deletion(&self, db: &Connection) -> Result<VaultDeletion, VaultError> {
        store::deletion(db)?.ok_or_else(|| {
            VaultError::new(
                VaultErrorCode::Conflict,
                format!("the key vault '{}' is not deleted", self.name),
            )
        })
    }
}
