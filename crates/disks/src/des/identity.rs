//! Taking a set's identity away, and giving it another one.

use uuid::Uuid;

use super::outcome::DeletedDes;
use super::set::{identity_for, known_key_url, principal_of};
use installation::DesOperation;
use installation::catalog::{Change, DesIdentity, DiskEncryptionSetRecord, Kind, Stored};
use installation::{Installation, InstallationError, retrying};
use vault::{KeyUrl, VaultError, VaultErrorCode};

/// Removes the identity of a set. The set and its disks stay, but no vault grants them a key any
/// more, so those that are attached stop at their next check.
///
/// # Errors
/// When there is no such set, or it has no identity.
pub fn remove_identity(
    installation: &Installation,
    name: &str,
) -> Result<DeletedDes, InstallationError> {
    let (url, operation) = (
        known_key_url(installation, name),
        DesOperation::RemoveIdentity,
    );
    let principal_id = installation.recorded(operation, name, url.as_deref(), |_| {
        retrying(|| remove_identity_now(installation, name))
    })?;
    Ok(DeletedDes {
        principal_id,
        vaults_with_policy: installation.vaults_with_policy(principal_id)?,
    })
}

fn remove_identity_now(installation: &Installation, name: &str) -> Result<Uuid, InstallationError> {
    let Stored { rev, mut record } = unlocked(installation, name)?;
    if record.identity == DesIdentity::None {
        let message = format!("the disk encryption set '{name}' has no identity");
        return Err(VaultError::new(VaultErrorCode::Conflict, message).into());
    }
    let principal_id = std::mem::take(&mut record.principal_id);
    record.identity = DesIdentity::None;
    installation.catalog().update_des(rev, &record)?;
    Ok(principal_id)
}

/// A set that no management lock keeps from being changed.
fn unlocked(
    installation: &Installation,
    name: &str,
) -> Result<Stored<DiskEncryptionSetRecord>, InstallationError> {
    let catalog = installation.catalog();
    let set = catalog.des(name)?;
    catalog.refuse_locked(Kind::DiskEncryptionSet, name, Change::Write)?;
    Ok(set)
}

/// Gives a set whose identity was removed another one: a new one of its own, as Azure does,
/// which no policy knows yet, that of a user, or, for a key in a vault elsewhere, a managed identity.
///
/// # Errors
/// When the set has an identity, or its vault cannot know the wanted one.
pub fn assign_identity(
    installation: &Installation,
    name: &str,
    wanted: Option<&DesIdentity>,
) -> Result<DiskEncryptionSetRecord, InstallationError> {
    let (url, operation) = (
        known_key_url(installation, name),
        DesOperation::AssignIdentity,
    );
    installation.recorded(operation, name, url.as_deref(), |_| {
        retrying(|| assign_identity_now(installation, name, wanted))
    })
}

fn assign_identity_now(
    installation: &Installation,
    name: &str,
    wanted: Option<&DesIdentity>,
) -> Result<DiskEncryptionSetRecord, InstallationError> {
    let Stored { rev, mut record } = unlocked(installation, name)?;
    if record.identity != DesIdentity::None {
        let message = format!(
            "the disk encryption set '{name}' has an identity; remove that first with `sealdisk \
             disk-encryption-set identity remove {name}`"
        );
        return Err(VaultError::new(VaultErrorCode::Conflict, message).into());
    }
    let url: KeyUrl = record.key_url.parse()?;
    record.identity = identity_for(&url, wanted)?;
    let managed = match url.vault_name() {
        Some(_) => None,
        None => {
            let vault = installation.remote_vault(&url.vault_url, &record.identity)?;
            Some(vault.introduce(&url.key)?.0)
        }
    };
    record.principal_id = principal_of(&record.identity, managed);
    installation.catalog().update_des(rev, &record)?;
    Ok(record)
}
