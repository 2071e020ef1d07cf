//! Taking a set's identity away, and giving it another one.

use uuid::Uuid;

use super::{DeletedDes, identity_for};
use crate::catalog::{DesIdentity, DiskEncryptionSetRecord, Stored};
use crate::control::changes::DesOperation;
use crate::control::{ControlError, Installation, retrying};
use vault::{KeyUrl, VaultError, VaultErrorCode};

impl Installation {
    /// Removes the identity of a set. The set and its disks stay, but no vault grants them a key any
    /// more, so those that are attached stop at their next check.
    ///
    /// # Errors
    /// When there is no such set, or it has no identity.
    pub fn remove_des_identity(&self, name: &str) -> Result<DeletedDes, ControlError> {
        let (url, operation) = (self.known_key_url(name), DesOperation::RemoveIdentity);
        let principal_id = self.recorded(operation, name, url.as_deref(), |_| {
            retrying(|| self.remove_des_identity_now(name))
        })?;
        Ok(DeletedDes {
            principal_id,
            vaults_with_policy: self.vaults_with_policy(principal_id)?,
        })
    }

    fn remove_des_identity_now(&self, name: &str) -> Result<Uuid, ControlError> {
        let Stored { rev, mut record } = self.catalog().des(name)?;
        if record.identity == DesIdentity::None {
            let message = format!("the disk encryption set '{name}' has no identity");
            return Err(VaultError::new(VaultErrorCode::Conflict, message).into());
        }
        let principal_id = std::mem::take(&mut record.principal_id);
        record.identity = DesIdentity::None;
        self.catalog().update_des(rev, &record)?;
        Ok(principal_id)
    }

    /// Gives a set whose identity was removed another one: a new one of its own, as Azure does,
    /// which no policy knows yet, or, for a key in a vault elsewhere, a managed identity.
    ///
    /// # Errors
    /// When the set has an identity, or its vault cannot know the wanted one.
    pub fn assign_des_identity(
        &self,
        name: &str,
        wanted: Option<&DesIdentity>,
    ) -> Result<DiskEncryptionSetRecord, ControlError> {
        let (url, operation) = (self.known_key_url(name), DesOperation::AssignIdentity);
        self.recorded(operation, name, url.as_deref(), |_| {
            retrying(|| self.assign_des_identity_now(name, wanted))
        })
    }

    fn assign_des_identity_now(
        &self,
        name: &str,
        wanted: Option<&DesIdentity>,
    ) -> Result<DiskEncryptionSetRecord, ControlError> {
        let Stored { rev, mut record } = self.catalog().des(name)?;
        if record.identity != DesIdentity::None {
            let message = format!(
                "the disk encryption set '{name}' has an identity; remove that first with `sealdisk \
                 disk-encryption-set identity remove {name}`"
            );
            return Err(VaultError::new(VaultErrorCode::Conflict, message).into());
        }
        let url: KeyUrl = record.key_url.parse()?;
        record.identity = identity_for(&url, wanted)?;
        record.principal_id = match record.identity {
            DesIdentity::SystemAssigned => Uuid::new_v4(),
            _ => {
                let vault = self.remote_vault(&url.vault_url, &record.identity)?;
                vault.introduce(&url.key)?.0
            }
        };
        self.catalog().update_des(rev, &record)?;
        Ok(record)
    }
}
