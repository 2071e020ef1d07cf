//! The refusals of a vault, worded once: what is wrong, why, and the command that helps.

use thiserror::Error;
use time::OffsetDateTime;

use super::clock::moment;
use super::store::{DeletedRow, KeyRow, VaultDeletion};
use super::{Caller, KeyPermission, Permissions, VaultError, VaultErrorCode};

/// Longest piece of a caller's input that the audit log and messages repeat.
const REPEATED: usize = 127;

/// A key that a vault has not, as the cause of a refusal: who names keys may look for one that is nearly called so.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the key vault '{vault}' has no key '{key}'")]
pub struct MissingKey {
    /// The vault's name.
    pub vault: String,
    /// The name that was asked for.
    pub key: String,
}

pub(super) fn shortened(text: &str) -> String {
    text.chars().take(REPEATED).collect()
}

/// The identity lacks a permission. Setting a policy replaces the old one, so the command that
/// grants it names what is granted already.
pub(super) fn forbidden(
    vault: &str,
    caller: &Caller,
    permission: KeyPermission,
    granted: &Permissions,
) -> VaultError {
    let disks = Permissions::for_disks();
    let wanted = match disks.contains(permission) {
        true => granted.union(&disks),
        false => granted.union(&[permission].into_iter().collect()),
    };
    VaultError::new(
        VaultErrorCode::Forbidden,
        format!(
            "the identity {id} does not have the key permission '{permission}' in the key vault \
             '{vault}'; grant it with `sealdisk keyvault set-policy {vault} --object-id {id} \
             --key-permissions {}`",
            wanted.names().join(" "),
            id = caller.object_id,
        ),
    )
}

/// The vault is deleted: none of its keys is to be used, nothing in it to be changed.
pub(super) fn vault_deleted(vault: &str, deletion: &VaultDeletion) -> VaultError {
    VaultError::new(
        VaultErrorCode::VaultDeleted,
        format!(
            "the key vault '{vault}' is deleted; until {} it can be recovered with `sealdisk \
             keyvault recover {vault}`",
            moment(deletion.scheduled_purge)
        ),
    )
}

/// There is no such key, or no such version of it.
pub(super) fn no_key(vault: &str, name: &str, version: Option<&str>) -> VaultError {
    let name = shortened(name);
    let (what, list) = match version {
        None => (
            format!("no key '{name}'"),
            format!("key list --vault-name {vault}"),
        ),
        Some(version) => (
            format!("no version {} of the key '{name}'", shortened(version)),
            format!("key list-versions {name} --vault-name {vault}"),
        ),
    };
    let refused = VaultError::new(
        VaultErrorCode::KeyNotFound,
        format!("the key vault '{vault}' has {what}; `sealdisk keyvault {list}` shows what it has"),
    );
    if version.is_some() {
        return refused;
    }
    let missing = MissingKey {
        vault: vault.into(),
        key: name,
    };
    VaultError {
        source: Some(Box::new(missing)),
        ..refused
    }
}

/// It is not there, but may have been before the vault was restored, or made anew.
pub(super) fn incomplete(vault: &str, since: OffsetDateTime, refused: &VaultError) -> VaultError {
    VaultError::new(
        VaultErrorCode::Incomplete,
        format!(
            "{}; but the key vault '{vault}' was restored or made anew at {}, and may lack what it had before: restore or \
             grant that, and run `sealdisk catalog rebuild --all-directories-named` then",
            refused.message,
            moment(since)
        ),
    )
}

/// Why a key version may not be used at `now`; `None` when it may.
pub(super) fn unusable(vault: &str, row: &KeyRow, now: OffsetDateTime) -> Option<VaultError> {
    let (code, what, option) = if !row.enabled {
        let code = VaultErrorCode::KeyDisabled;
        (code, "is disabled".into(), "--enabled true")
    } else if let Some(from) = row.not_before.filter(|from| now < *from) {
        let what = format!("is not valid before {}", moment(from));
        (VaultErrorCode::KeyNotYetValid, what, "--not-before TIME")
    } else if let Some(until) = row.expires.filter(|until| now >= *until) {
        let what = format!("expired at {}", moment(until));
        (VaultErrorCode::KeyExpired, what, "--expires TIME")
    } else {
        return None;
    };
    Some(VaultError::new(
        code,
        format!(
            "the key '{name}' version {version} in the key vault '{vault}' {what}; change that \
             with `sealdisk keyvault key set-attributes {name} --vault-name {vault} --version \
             {version} {option}`",
            name = row.name,
            version = row.version,
        ),
    ))
}

/// There is such a key, but it is deleted.
pub(super) fn deleted(vault: &str, deleted: &DeletedRow) -> VaultError {
    VaultError::new(
        VaultErrorCode::KeyNotFound,
        format!(
            "the key '{name}' in the key vault '{vault}' was deleted at {at} and is not usable; \
             bring it back with `sealdisk keyvault key recover {name} --vault-name {vault}`",
            name = deleted.name,
            at = moment(deleted.deleted),
        ),
    )
}

/// A name cannot be taken because a deleted key has it.
pub(super) fn name_is_deleted(vault: &str, deleted: &DeletedRow) -> VaultError {
    VaultError::new(
        VaultErrorCode::KeyDeleted,
        format!(
            "the key '{name}' in the key vault '{vault}' is deleted but recoverable, so its name \
             cannot be used again before {until}; bring it back with `sealdisk keyvault key recover \
             {name} --vault-name {vault}`, or purge it",
            name = deleted.name,
            until = moment(deleted.purge_at),
        ),
    )
}

/// A name cannot be taken because the private key of the one that had it is not destroyed yet.
pub(super) fn being_purged(vault: &str, name: &str) -> VaultError {
    VaultError::new(
        VaultErrorCode::KeyBeingPurged,
        format!(
            "the key '{name}' in the key vault '{vault}' is being purged, and its private key could \
             not be destroyed yet, so its name cannot be used again; `sealdisk audit list --vault \
             {vault}` says why, and `sealdisk keyvault run-due` tries again"
        ),
    )
}

/// There is no deleted key of that name.
pub(super) fn no_deleted_key(vault: &str, name: &str) -> VaultError {
    VaultError::new(
        VaultErrorCode::KeyNotFound,
        format!(
            "the key vault '{vault}' has no deleted key '{}'; `sealdisk keyvault key list-deleted \
             --vault-name {vault}` shows what it has",
            shortened(name)
        ),
    )
}

/// A key cannot be purged before its time.
pub(super) fn purge_protected(vault: &str, deleted: &DeletedRow) -> VaultError {
    VaultError::new(
        VaultErrorCode::ForbiddenByPolicy,
        format!(
            "operation \"purge\" is not allowed on the key vault '{vault}' because purge protection \
             is enabled; the key '{}' is purged at {}",
            deleted.name,
            moment(deleted.purge_at),
        ),
    )
}

/// The retention time is what it was when the vault was made: a shorter one would purge keys early, in
/// spite of purge protection.
pub(super) fn fixed_retention(vault: &str, days: u32) -> VaultError {
    VaultError::new(
        VaultErrorCode::BadParameter,
        format!(
            "The property \"softDeleteRetentionInDays\" of the key vault '{vault}' has been set \
             already ({days} days) and it can't be modified; choose it with `sealdisk keyvault create \
             --retention-days`"
        ),
    )
}

/// The key does not permit an operation.
pub(super) fn operation(vault: &str, row: &KeyRow, operation: KeyPermission) -> VaultError {
    VaultError::new(
        VaultErrorCode::KeyOperationForbidden,
        format!(
            "operation {operation} is not permitted on the key '{name}' version {version} in the key \
             vault '{vault}', which permits {ops}; change that with `sealdisk keyvault key \
             set-attributes {name} --vault-name {vault} --version {version} --ops …`",
            name = row.name,
            version = row.version,
            ops = row.key_ops,
        ),
    )
}

/// A key that somebody else changed between the checks and the change.
pub(super) fn changed(name: &str) -> VaultError {
    VaultError::new(
        VaultErrorCode::Conflict,
        format!("the key '{name}' was changed at the same time; try again"),
    )
}
