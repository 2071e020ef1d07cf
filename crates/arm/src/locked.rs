//! What management locks refuse to the API. What a request does is known by the action that whoever asks has to be
//! permitted: so each request is checked where that is, before anything is changed. What the command line does is
//! refused by the functions that do it, which ask the catalog.

use std::collections::BTreeSet;

use crate::error::ArmError;
use crate::id::is_within;
use crate::names::subscription;
use installation::Installation;
use installation::catalog::{Change, DEFAULT_GROUP, Kind, Lock, LockTarget};

/// What an action with something does to it, as far as locks are about that.
fn change_of(action: &str) -> Option<Change> {
    let action = action.to_ascii_lowercase();
    let ends = |with: &str| action.ends_with(with);
    // What takes a lock off, and what only looks.
    let is_free = action.starts_with("microsoft.authorization/locks/")
        || [
            "/validate/action",
            "/whatif/action",
            "/exporttemplate/action",
        ]
        .iter()
        .any(|with| ends(with));
    if is_free || ends("/read") {
        None
    } else if ends("/delete") || ends("/purge/action") {
        Some(Change::Delete)
    } else {
        Some(Change::Write)
    }
}

/// Refuses an action that a lock forbids: one on its scope or above, and where something is deleted with all that is in
/// it, one below.
///
/// # Errors
/// 409 `ScopeLocked`, in Azure's words.
pub fn refuse(
    installation: &Installation,
    full_type: impl Fn(Kind) -> String,
    action: &str,
    scope: &str,
) -> Result<(), ArmError> {
    let Some(change) = change_of(action) else {
        return Ok(());
    };
    // What is at a scope does not take along what is below that, and a purge takes the vault alone, whose own locks
    // whoever purges it meets.
    let takes_along = action.to_ascii_lowercase().ends_with("/delete")
        && !action.starts_with("Microsoft.Authorization/");
    let locks = installation.catalog().locks()?.into_iter();
    let locked: BTreeSet<String> = locks
        .filter(|lock| lock.record.level.forbids(change))
        .map(|lock| scope_of(installation, &full_type, &lock))
        .filter(|locked| is_within(scope, locked) || takes_along && is_within(locked, scope))
        .collect();
    if locked.is_empty() {
        return Ok(());
    }
    let locked: Vec<String> = locked.into_iter().collect();
    Err(ArmError::new(
        409,
        "ScopeLocked",
        format!(
            "The scope '{scope}' cannot perform {} operation because following scope(s) are locked: '{}'. Please \
             remove the lock and try again.",
            change.as_str(),
            locked.join("','")
        ),
    ))
}

/// The id of what a lock is on.
pub fn scope_of(
    installation: &Installation,
    full_type: impl Fn(Kind) -> String,
    lock: &Lock,
) -> String {
    let own = own(installation);
    let group = lock.group.as_deref().unwrap_or(DEFAULT_GROUP);
    match &lock.record.target {
        LockTarget::Subscription => own,
        LockTarget::Group(group) => format!("{own}/resourceGroups/{group}"),
        LockTarget::Resource(kind, name) => {
            let full_type = full_type(*kind);
            format!("{own}/resourceGroups/{group}/providers/{full_type}/{name}")
        }
    }
}

/// The id of the subscription.
fn own(installation: &Installation) -> String {
    format!("/subscriptions/{}", subscription(installation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_says_what_becomes_of_its_scope() {
        let delete = Some(Change::Delete);
        let write = Some(Change::Write);
        for (action, expected) in [
            ("Microsoft.Compute/disks/read", None),
            ("Microsoft.Compute/disks/delete", delete),
            ("Microsoft.Compute/disks/write", write),
            ("Microsoft.Compute/disks/beginGetAccess/action", write),
            ("Microsoft.Compute/disks/endGetAccess/action", write),
            (
                "Microsoft.KeyVault/locations/deletedVaults/purge/action",
                delete,
            ),
            ("Microsoft.KeyVault/vaults/accessPolicies/write", write),
            ("Microsoft.Authorization/roleAssignments/delete", delete),
            ("Microsoft.Authorization/locks/delete", None),
            ("Microsoft.Authorization/locks/write", None),
            ("Microsoft.Resources/deployments/validate/action", None),
            ("Microsoft.Resources/deployments/whatIf/action", None),
            ("Microsoft.Resources/deployments/cancel/action", write),
        ] {
            assert_eq!(change_of(action), expected, "{action}");
        }
    }
}
