//! Role-based access: which roles there are, who has which at which scope, and what that permits.
//!
//! What happens with keys in a vault is decided by the vault itself, for clients over HTTPS and for the
//! attached disks of this host alike, and it knows access policies. So a vault that is governed by roles
//! has access policies that follow from the role assignments at it and above it (`vaults.rs`).

mod assignments;
mod definitions;
mod vaults;

pub use assignments::{NewAssignment, assign, detail, remove};
pub use definitions::{ROLES, Role, role, role_named};
pub use vaults::{
    RBAC, follow_roles, follow_roles_of_all, has_roles, recover, set_policies, set_policy,
};

use crate::id::is_within;
use installation::catalog::RoleAssignmentRecord;

/// What the audit log calls the granting of a role, and the taking away.
pub const WRITE: &str = "RoleAssignmentWrite";
/// See [`WRITE`].
pub const DELETE: &str = "RoleAssignmentDelete";

/// The role assignments of one identity.
pub type Roles = Vec<RoleAssignmentRecord>;

/// Whether roles permit an action at a scope.
pub fn permitted(roles: &[RoleAssignmentRecord], action: &str, scope: &str) -> bool {
    roles
        .iter()
        .filter(|assignment| is_within(scope, &assignment.scope))
        .filter_map(|assignment| role(assignment.role))
        .any(|role| role.permits(action))
}

/// Whether an identity may do anything at all.
pub fn has_any(roles: &[RoleAssignmentRecord]) -> bool {
    roles
        .iter()
        .any(|assignment| role(assignment.role).is_some())
}
