//! Granting roles, and taking them away: for the API and the command line.

use uuid::Uuid;

use super::definitions::role;
use super::vaults::{follow_change, refuse_unavailable};
use crate::error::ArmError;
use crate::id::{ArmPath, PathError, Typed, is_within};
use crate::identities::find;
use crate::locks::full_type;
use crate::types::type_of;
use installation::Installation;
use installation::catalog::{DEFAULT_GROUP, RoleAssignmentRecord, Touch};

/// A role that is to be granted.
pub struct NewAssignment<'a> {
    /// The name of the assignment.
    pub id: Uuid,
    /// Where: the id of the subscription, a group or a resource.
    pub scope: &'a str,
    /// Which role.
    pub role: Uuid,
    /// To whom.
    pub principal: Uuid,
    /// What the identity is, as the client says.
    pub principal_type: &'a str,
    /// When and by whom.
    pub by: Touch,
}

/// Grants a role; false when it was granted under that name before.
///
/// # Errors
/// For a role, an identity or a scope that there is not, for what is granted under another name, and for a vault that
/// cannot be opened and would have to follow: nothing is changed then.
pub fn assign(
    installation: &Installation,
    new: &NewAssignment<'_>,
) -> Result<(RoleAssignmentRecord, bool), ArmError> {
    let catalog = installation.catalog();
    if role(new.role).is_none() {
        let message = format!(
            "The specified role definition with ID '{}' does not exist.",
            new.role
        );
        return Err(ArmError::new(400, "RoleDefinitionDoesNotExist", message));
    }
    if find(installation, new.principal)?.is_none() {
        return Err(ArmError::new(
            400,
            "PrincipalNotFound",
            format!(
                "Principal {} does not exist in the directory {}. Check that you have the correct principal ID.",
                new.principal.simple(),
                installation.id()
            ),
        ));
    }
    // From here on a group stays, and roles are what they are.
    let lock = installation.lock_policies()?;
    let record = RoleAssignmentRecord {
        id: new.id,
        scope: checked_scope(installation, new.scope)?,
        role: new.role,
        principal: new.principal,
        principal_type: new.principal_type.into(),
        created: new.by,
    };
    let same = |known: &&RoleAssignmentRecord| {
        known.role == record.role
            && known.principal == record.principal
            && known.scope.eq_ignore_ascii_case(&record.scope)
    };
    let all = catalog.role_assignments()?;
    if let Some(known) = all.iter().find(|known| known.id == new.id) {
        if same(&known) {
            follow_change(installation, &lock, known, &all)?;
            return Ok((known.clone(), false));
        }
        return Err(ArmError::new(
            409,
            "RoleAssignmentUpdateNotPermitted",
            "Tenant ID, application ID, principal ID, and scope are not allowed to be updated.",
        ));
    }
    if let Some(known) = all.iter().find(same) {
        return Err(ArmError::new(
            409,
            "RoleAssignmentExists",
            format!(
                "The role assignment already exists. The ID of the existing role assignment is {}.",
                known.id.simple()
            ),
        ));
    }
    refuse_unavailable(installation, &record)?;
    catalog.insert_role_assignment(&record)?;
    // The resource may have been deleted meanwhile, with the roles that there were at it.
    if let Err(gone) = checked_scope(installation, new.scope) {
        catalog.delete_role_assignment(record.id)?;
        return Err(gone);
    }
    follow_change(installation, &lock, &record, &catalog.role_assignments()?)?;
    Ok((record, true))
}

/// Takes a role away; what it was, if there was one.
///
/// # Errors
/// When a vault could not be changed: the role is still granted then.
pub fn remove(
    installation: &Installation,
    id: Uuid,
) -> Result<Option<RoleAssignmentRecord>, ArmError> {
    let catalog = installation.catalog();
    let lock = installation.lock_policies()?;
    let mut all = catalog.role_assignments()?;
    let Some(at) = all.iter().position(|known| known.id == id) else {
        return Ok(None);
    };
    let record = all.remove(at);
    refuse_unavailable(installation, &record)?;
    follow_change(installation, &lock, &record, &all)?;
    catalog.delete_role_assignment(id)?;
    Ok(Some(record))
}

/// What the audit log says of a role that is granted or taken away.
pub fn detail(scope: &str, id: Uuid, principal: Uuid) -> String {
    match role(id) {
        Some(role) => format!("{} over {scope} for {principal}", role.name),
        None => format!("{id} over {scope} for {principal}"),
    }
}

/// A scope as it is stored: the id, as it is written, of what is there. A role at something else would wait for whoever
/// makes that.
fn checked_scope(installation: &Installation, scope: &str) -> Result<String, ArmError> {
    let wrong = |error: PathError| ArmError::parameter("scope", format!("The scope: {error}."));
    let path = ArmPath::parse(scope).map_err(wrong)?;
    let own = format!(
        "/subscriptions/{}",
        crate::names::subscription(installation)
    );
    let text = path.to_string();
    let is_resource = path.typed.iter().all(Typed::is_resource);
    if !is_within(&text, &own) || !path.words.is_empty() || !is_resource || path.typed.len() > 1 {
        return Err(wrong_scope(scope));
    }
    let Some(group) = &path.group else {
        return match path.typed.is_empty() {
            true => Ok(own),
            false => Err(wrong_scope(scope)),
        };
    };
    let known = installation.catalog().group(group)?;
    let known = known.ok_or_else(|| ArmError::no_group(group))?;
    // A vault knows access to all of its keys.
    if path
        .typed
        .first()
        .is_some_and(|typed| typed.types.len() > 1)
    {
        return Err(ArmError::not_offered("scope", "roles for a single key"));
    }
    let of_group = format!("{own}/resourceGroups/{}", known.name);
    match path.typed.first() {
        None => Ok(of_group),
        Some(typed) => {
            let below = resource(installation, &known.name, typed)?;
            Ok(format!("{of_group}/providers/{below}"))
        }
    }
}

fn wrong_scope(scope: &str) -> ArmError {
    let message = format!(
        "'{scope}' is no scope: give the id of the subscription, a group or a resource in it."
    );
    ArmError::parameter("scope", message)
}

/// Type and name, as they are written, of a resource that is in a group. A vault that is deleted softly is one, too.
fn resource(installation: &Installation, group: &str, typed: &Typed) -> Result<String, ArmError> {
    let asked = typed.names.last().map_or("", String::as_str);
    let missing = || ArmError::no_resource(&typed.full_type(), asked, group);
    let kind = type_of(typed).ok_or_else(missing)?;
    let catalog = installation.catalog();
    let name = catalog.name_of(kind, asked)?.ok_or_else(missing)?;
    let placed = catalog.placement(kind, &name)?;
    let place = placed.map_or_else(|| DEFAULT_GROUP.to_owned(), |placed| placed.group);
    match place.eq_ignore_ascii_case(group) {
        true => Ok(format!("{}/{name}", full_type(kind))),
        false => Err(missing()),
    }
}
