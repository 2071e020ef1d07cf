//! A vault that may lack keys and policies that it had: one that was restored from a backup, or made anew in the place of
//! a lost one.
//!
//! What such a vault does not know it cannot decide about. A disk that runs must not lose its DEK because the backup is
//! older than a key version or a grant: nobody could unwrap that DEK again. So while the vault has the mark, an unwrap of
//! an unknown key, or for an identity without a grant, is refused as by a vault that cannot be asked, which a running disk
//! outlives for its grace period. What the vault does know of the key decides as ever: that it is disabled, out of its time
//! or deleted.
//!
//! The mark is in the vault's own database, so that it comes along wherever a restored vault is copied to, and every
//! process that opens the vault finds it.

use database::Connection;
use time::OffsetDateTime;

use super::queue::KeyUse;
use super::subject::Subject;
use super::vault::EmbeddedVault;
use crate::{Caller, KeyId, KeyPermission, VaultError, VaultErrorCode};
use crate::{refusal, store};

impl EmbeddedVault {
    /// Since when the vault may lack what was in it before; `None` for one that has all that it had.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn incomplete(&self) -> Result<Option<OffsetDateTime>, VaultError> {
        self.read(store::incomplete)
    }

    /// Marks the vault as one that may lack what was in it before.
    ///
    /// # Errors
    /// [`VaultErrorCode::VaultDeleted`], [`VaultErrorCode::Internal`].
    pub fn mark_incomplete(&self, caller: &Caller) -> Result<(), VaultError> {
        self.note_incomplete(caller, Some(self.clock.now()))
    }

    /// Takes that back: whatever it does not know from now on does not exist.
    ///
    /// # Errors
    /// As [`mark_incomplete`](Self::mark_incomplete).
    pub fn clear_incomplete(&self, caller: &Caller) -> Result<(), VaultError> {
        self.note_incomplete(caller, None)
    }

    fn note_incomplete(
        &self,
        caller: &Caller,
        since: Option<OffsetDateTime>,
    ) -> Result<(), VaultError> {
        let subject = Subject {
            detail: Some(format!("incomplete={}", since.is_some())),
            ..Subject::vault("VaultUpdate")
        };
        self.audited(caller, &subject, |db| store::set_incomplete(db, since))
    }

    /// The refusal of a use, which is none where the vault may only lack what would allow it.
    pub(super) fn as_far_as_known(
        &self,
        db: &Connection,
        key_use: &KeyUse,
        refused: VaultError,
    ) -> VaultError {
        let may_lack = key_use.permission == KeyPermission::UnwrapKey
            && matches!(
                refused.code,
                VaultErrorCode::KeyNotFound | VaultErrorCode::Forbidden
            );
        if !may_lack {
            return refused;
        }
        let undecided = || -> Result<Option<OffsetDateTime>, VaultError> {
            let since = store::incomplete(db)?;
            match since.is_some() && self.is_decided(db, &key_use.key)? {
                true => Ok(None),
                false => Ok(since),
            }
        };
        match undecided() {
            Ok(None) => refused,
            Ok(Some(since)) => refusal::incomplete(&self.name, since, &refused),
            // Whether it is a refusal cannot be told.
            Err(failed) => failed,
        }
    }

    /// Whether the vault knows of the key that nobody may use it.
    fn is_decided(&self, db: &Connection, key: &KeyId) -> Result<bool, VaultError> {
        if self.deleted_row(db, &key.name)?.is_some() {
            return Ok(true);
        }
        let row = store::key(db, key)?;
        Ok(row.is_some_and(|row| refusal::unusable(&self.name, &row, self.clock.now()).is_some()))
    }
}
