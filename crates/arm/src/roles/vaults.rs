//! Vaults that are governed by roles: their access policies follow from role assignments.
//!
//! # Order of steps
//!
//! A role is granted in the catalog first and in the vaults then; it is taken away in the vaults first. A
//! process that dies in between leaves an identity with less than the catalog says, and never with more.
//! The next change, or the next start of the server, brings the vaults up to date.
//!
//! All of it is done under the [`PolicyLock`], with what the catalog says then. From a deleted vault access is taken away
//! only; it is given what is missing when it is recovered.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::definitions::role;
use crate::error::ArmError;
use crate::id::is_within;
use crate::names::subscription;
use installation::catalog::{Kind, PlacementRecord, RoleAssignmentRecord};
use installation::{Installation, InstallationError, PolicyLock};
use vault::{EmbeddedVault, KeyPermission, Permissions, VaultErrorCode};

/// Where the settings of a placement say that roles govern the vault.
pub const RBAC: &str = "enableRbacAuthorization";

/// Whether roles govern a vault, and not the access policies that somebody sets.
///
/// # Errors
/// When the catalog cannot be read.
pub fn has_roles(installation: &Installation, vault: &str) -> Result<bool, InstallationError> {
    let placed = installation.catalog().placement(Kind::Vault, vault)?;
    Ok(placed.is_some_and(|placed| says_roles(&placed)))
}

fn says_roles(placed: &PlacementRecord) -> bool {
    placed.settings[RBAC].as_bool() == Some(true)
}

/// Gives all vaults that are governed by roles the access policies that follow from these assignments.
///
/// # Errors
/// Of the first vault that could not be changed; the others are changed all the same.
pub fn follow_roles_of_all(
    installation: &Installation,
    lock: &PolicyLock,
    assignments: &[RoleAssignmentRecord],
) -> Result<(), InstallationError> {
    let mut outcome = Ok(());
    for record in installation.vaults_here()? {
        let followed = follow_roles(installation, lock, &record.name, assignments);
        outcome = outcome.and(followed);
    }
    outcome
}

/// The same after a change of one assignment: a vault that this does not concern, and that cannot be changed, is a matter
/// of its own, which the log tells.
///
/// # Errors
/// Of the first vault that the change concerns and that could not be changed; the others are changed all the same.
pub fn follow_change(
    installation: &Installation,
    lock: &PolicyLock,
    changed: &RoleAssignmentRecord,
    assignments: &[RoleAssignmentRecord],
) -> Result<(), InstallationError> {
    let mut outcome = Ok(());
    for record in installation.vaults_here()? {
        let Err(error) = follow_roles(installation, lock, &record.name, assignments) else {
            continue;
        };
        match governed(installation, &record.name) {
            Ok(Some(vault)) if !vault.is_concerned_by(changed) => log::warn!(
                "the key vault {} does not follow the role assignments, of which this one does not concern it: {error}",
                record.name
            ),
            _ => outcome = outcome.and(Err(error)),
        }
    }
    outcome
}

/// Refuses a change of an assignment, before it is made, that a vault could not follow since it cannot be opened.
///
/// # Errors
/// 409, and which vault that is.
pub fn refuse_unavailable(
    installation: &Installation,
    changed: &RoleAssignmentRecord,
) -> Result<(), ArmError> {
    for record in installation.vaults_here()? {
        let Some(found) = governed(installation, &record.name)? else {
            continue;
        };
        if !found.is_concerned_by(changed) {
            continue;
        }
        let looked = installation.vault(&found.name);
        let looked = looked.and_then(|vault| Ok(vault.policies()?));
        if let Err(error) = looked {
            let (name, code) = (&found.name, error.code());
            let message = format!(
                "The key vault '{name}' cannot be opened ({code}), so its access policies cannot follow this change, and \
                 nothing is changed. `sealdisk keyvault show {name}` on its host says why; change the role when it can be \
                 opened, or at a scope that it is not in."
            );
            return Err(ArmError::new(409, "KeyVaultNotAvailable", message));
        }
    }
    Ok(())
}

/// A vault that is governed by roles.
struct Governed {
    name: String,
    /// Its id.
    scope: String,
}

impl Governed {
    /// Whether its access policies may follow from that assignment.
    fn is_concerned_by(&self, assignment: &RoleAssignmentRecord) -> bool {
        is_within(&self.scope, &assignment.scope) && !key_permissions(assignment.role).is_empty()
    }
}

/// The vault, if it is governed by roles.
fn governed(
    installation: &Installation,
    name: &str,
) -> Result<Option<Governed>, InstallationError> {
    let catalog = installation.catalog();
    let Some(placed) = catalog.placement(Kind::Vault, name)? else {
        return Ok(None);
    };
    // A client may have placed it with its name in another case.
    let Some(name) = catalog.name_of(Kind::Vault, name)? else {
        return Ok(None);
    };
    if !says_roles(&placed) {
        return Ok(None);
    }
    let group = &placed.group;
    let scope = format!(
        "/subscriptions/{}/resourceGroups/{group}/providers/Microsoft.KeyVault/vaults/{name}",
        subscription(installation)
    );
    Ok(Some(Governed { name, scope }))
}

/// Does that with one vault, if it is governed by roles.
///
/// # Errors
/// Why it could not be changed.
pub fn follow_roles(
    installation: &Installation,
    lock: &PolicyLock,
    name: &str,
    assignments: &[RoleAssignmentRecord],
) -> Result<(), InstallationError> {
    let Some(found) = governed(installation, name)? else {
        return Ok(());
    };
    let vault = installation.vault(&found.name)?;
    let mut wanted = BTreeMap::<Uuid, Permissions>::new();
    for assignment in assignments {
        if !is_within(&found.scope, &assignment.scope) {
            continue;
        }
        let granted = key_permissions(assignment.role);
        if !granted.is_empty() {
            let so_far = wanted.entry(assignment.principal).or_default();
            *so_far = so_far.union(&granted);
        }
    }
    set_policies(installation, lock, &vault, wanted)
}

/// Brings a deleted vault back. Whoever has lost a role meanwhile has no access to its keys at any moment.
///
/// # Errors
/// Why it cannot be recovered: it stays deleted. What is to be granted is left to the next change of roles when only that
/// fails.
pub fn recover(installation: &Installation, name: &str) -> Result<(), InstallationError> {
    let lock = installation.lock_policies()?;
    let assignments = installation.catalog().role_assignments()?;
    follow_roles(installation, &lock, name, &assignments)?;
    installation.recover_vault(name)?;
    follow_roles(installation, &lock, name, &assignments)
}

/// Gives a vault these access policies, besides the operator's. What is taken away goes first, and nothing else is done
/// in a deleted vault.
pub fn set_policies(
    installation: &Installation,
    _lock: &PolicyLock,
    vault: &EmbeddedVault,
    mut wanted: BTreeMap<Uuid, Permissions>,
) -> Result<(), InstallationError> {
    let operator = installation.operator();
    let is_deleted = vault.deletion()?.is_some();
    // Whoever has the host has its command line, whose vault this is.
    wanted.remove(&operator.object_id);
    for (identity, now) in vault.policies()? {
        if identity == operator.object_id {
            continue;
        }
        match wanted.get(&identity) {
            Some(as_it_is) if *as_it_is == now => {
                wanted.remove(&identity);
            }
            Some(_) if !is_deleted => {}
            _ => vault.delete_policy(&operator, identity)?,
        }
    }
    if is_deleted {
        return Ok(());
    }
    for (identity, permissions) in &wanted {
        vault.set_policy(&operator, *identity, permissions)?;
    }
    Ok(())
}

/// Gives one identity these permissions in a vault, or takes away what it has; never the operator's.
pub fn set_policy(
    installation: &Installation,
    _lock: &PolicyLock,
    vault: &EmbeddedVault,
    identity: Uuid,
    permissions: &Permissions,
) -> Result<(), InstallationError> {
    let operator = installation.operator();
    if identity == operator.object_id {
        return Ok(());
    }
    if !permissions.is_empty() {
        return Ok(vault.set_policy(&operator, identity, permissions)?);
    }
    match vault.delete_policy(&operator, identity) {
        Err(error) if error.code != VaultErrorCode::PolicyNotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// What a role permits with the keys of a vault.
pub fn key_permissions(id: Uuid) -> Permissions {
    let Some(role) = role(id) else {
        return Permissions::default();
    };
    let permits = |permission: &&KeyPermission| {
        let action = data_action(**permission);
        role.permits_data(&format!("Microsoft.KeyVault/vaults/{action}"))
    };
    KeyPermission::ALL.iter().filter(permits).copied().collect()
}

/// Azure's name of the data action for a permission.
fn data_action(permission: KeyPermission) -> &'static str {
    use KeyPermission as P;
    match permission {
        P::Get | P::List => "keys/read",
        P::Create => "keys/create/action",
        P::Import => "keys/import/action",
        P::Update => "keys/update/action",
        P::WrapKey => "keys/wrap/action",
        P::UnwrapKey => "keys/unwrap/action",
        P::Encrypt => "keys/encrypt/action",
        P::Decrypt => "keys/decrypt/action",
        P::Sign => "keys/sign/action",
        P::Verify => "keys/verify/action",
        P::Delete => "keys/delete",
        P::Recover => "keys/recover/action",
        P::Purge => "keys/purge/action",
        P::Backup => "keys/backup/action",
        P::Restore => "keys/restore/action",
        P::Rotate => "keys/rotate/action",
        P::GetRotationPolicy => "keyrotationpolicies/read",
        P::SetRotationPolicy => "keyrotationpolicies/write",
        P::Release => "keys/release/action",
    }
}

#[cfg(test)]
mod tests {
    use super::super::definitions::role_named;
    use super::*;

    #[test]
    fn roles_become_permissions() {
        let of = |name: &str| key_permissions(role_named(name).unwrap().id);
        assert_eq!(of("Key Vault Crypto Officer"), Permissions::all());
        assert_eq!(of("Key Vault Administrator"), Permissions::all());
        assert!(of("Owner").is_empty() && of("Contributor").is_empty());
        let service = of("Key Vault Crypto Service Encryption User");
        assert_eq!(service.names(), ["get", "list", "wrapKey", "unwrapKey"]);
        let reader = of("Key Vault Reader");
        assert_eq!(reader.names(), ["get", "list", "getrotationpolicy"]);
        assert!(!of("Key Vault Crypto User").contains(KeyPermission::Create));
    }
}
