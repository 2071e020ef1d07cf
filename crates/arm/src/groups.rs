//! Resource groups.

use std::cmp::Reverse;

use serde_json::{Value, json};
use server::FrontReply;
use time::OffsetDateTime;

use crate::audit::recorded;
use crate::call::{Call, ResourceType, Wanted, Work};
use crate::error::{ArmError, text};
use crate::etag::{check_etag, with_etag};
use crate::id::is_within;
use crate::operations;
use crate::placed::placed;
use crate::places::{group_lock, name_lock, tags};
use crate::reply::{done, list};
use crate::roles::{self, follow_roles};
use crate::types::importing;
use installation::PolicyLock;
use installation::catalog::{
    DEFAULT_GROUP, GroupRecord, Kind, LOCATION, OperationRecord, OperationState, PlacementRecord,
};

const TYPE: &str = "Microsoft.Resources/resourceGroups";
const ACTION: &str = "Microsoft.Resources/subscriptions/resourceGroups";

/// `GET …/resourceGroups`
///
/// # Errors
/// When they cannot be read.
pub fn all(call: &Call<'_>) -> Result<FrontReply, ArmError> {
    let (mut tag_name, mut tag_value) = (None, None);
    for term in &call.query.filter.terms {
        match term {
            crate::filter::Term::Is(field, value) if field.eq_ignore_ascii_case("tagName") => {
                tag_name = Some(value);
            }
            crate::filter::Term::Is(field, value) if field.eq_ignore_ascii_case("tagValue") => {
                tag_value = Some(value);
            }
            _ => {
                let message =
                    "Invalid $filter in the query: groups are chosen by tagName and tagValue.";
                return Err(ArmError::new(400, "InvalidFilterInQueryString", message));
            }
        }
    }
    let wanted = |group: &&GroupRecord| {
        let visible = call.may(&format!("{ACTION}/read"), &call.names.group_id(&group.name));
        let tag = tag_name.map(|name| group.tags.get(name));
        let has_tag = match (tag, tag_value) {
            (None, _) => true,
            (Some(found), None) => found.is_some(),
            (Some(found), Some(value)) => found == Some(value),
        };
        visible && has_tag
    };
    let groups = call.catalog().groups()?;
    let views = groups.iter().filter(wanted).map(|group| view(call, group));
    Ok(list(views.collect(), None))
}

/// One group.
///
/// # Errors
/// 403, 404, and what is wrong with a body.
pub fn one(call: &Call<'_>, name: &str) -> Result<FrontReply, ArmError> {
    let scope = call.names.group_id(name);
    let require = |verb: &str| call.require(&format!("{ACTION}/{verb}"), &scope);
    match call.head.method.as_str() {
        "GET" => {
            require("read")?;
            let found = call.catalog().group(name)?;
            let found = found.ok_or_else(|| ArmError::no_group(name))?;
            Ok(with_etag(view(call, &found), 200))
        }
        "HEAD" => {
            require("read")?;
            Ok(match call.catalog().group(name)? {
                Some(_) => done(204),
                None => done(404),
            })
        }
        "PUT" | "PATCH" => {
            require("write")?;
            put(call, name)
        }
        "DELETE" => {
            require("delete")?;
            begin_delete(call, name)
        }
        _ => Err(ArmError::new(
            405,
            "MethodNotAllowed",
            "A group is read, put, patched or deleted.",
        )),
    }
}

fn put(call: &Call<'_>, name: &str) -> Result<FrontReply, ArmError> {
    // What is put into it shares it too, an import for hours: nobody waits for that who changes its tags.
    let _held = call.changes.share(&group_lock(name), call.what())?;
    let own = format!("{}/write", group_lock(name));
    let _lock = call.changes.lock(&own, call.what())?;
    let known = call.catalog().group(name)?;
    let now = known.as_ref().map(|known| view(call, known));
    check_etag(call.head, now.as_ref())?;
    let is_new = known.is_none();
    let location = call.body.get("location").and_then(Value::as_str);
    match (&known, location) {
        (None, _) if call.head.method == "PATCH" => return Err(ArmError::no_group(name)),
        (None, None) => {
            let message = "The location property is required for this definition.";
            return Err(ArmError::new(400, "LocationRequired", message));
        }
        (None, Some(wanted)) if !wanted.eq_ignore_ascii_case(LOCATION) => {
            return Err(ArmError::new(
                400,
                "LocationNotAvailableForResourceGroup",
                format!(
                    "The provided location '{wanted}' is not available for resource group. List of available \
                     regions is '{LOCATION}'."
                ),
            ));
        }
        (Some(known), Some(wanted)) if !wanted.eq_ignore_ascii_case(&known.location) => {
            return Err(ArmError::new(
                409,
                "InvalidResourceGroupLocation",
                format!(
                    "Invalid resource group location '{wanted}'. The Resource group already exists in location '{}'.",
                    known.location
                ),
            ));
        }
        _ => check_name(name)?,
    }
    let tags = tags(&call.body)?;
    let record = match known {
        Some(known) => GroupRecord {
            tags: tags.unwrap_or_else(|| known.tags.clone()),
            ..known
        },
        None => GroupRecord {
            name: name.into(),
            location: LOCATION.into(),
            tags: tags.unwrap_or_default(),
            created: OffsetDateTime::now_utc(),
        },
    };
    let id = call.names.group_id(&record.name);
    recorded(call, "ResourceGroupWrite", &id, || {
        Ok(call.catalog().put_group(&record)?)
    })?;
    let status = if is_new { 201 } else { 200 };
    Ok(with_etag(view(call, &record), status))
}

/// Azure's rule: 1 to 90 letters, digits, `_`, `-`, `.`, `(` and `)`, not ending in a period.
fn check_name(name: &str) -> Result<(), ArmError> {
    let allowed = |c: char| c.is_alphanumeric() || "_-.()".contains(c);
    if (1..=90).contains(&name.chars().count()) && name.chars().all(allowed) && !name.ends_with('.')
    {
        return Ok(());
    }
    Err(ArmError::new(
        400,
        "InvalidResourceGroup",
        "The provided resource group name has to have 1 to 90 letters, digits, '_', '-', '.', '(' and ')', and not \
         to end with a period.",
    ))
}

/// Has a group deleted, which takes the longer the more is in it.
fn begin_delete(call: &Call<'_>, name: &str) -> Result<FrontReply, ArmError> {
    let Some(group) = call.catalog().group(name)? else {
        return Err(ArmError::no_group(name));
    };
    if group.name.eq_ignore_ascii_case(DEFAULT_GROUP) {
        return Err(ArmError::conflict(format!(
            "The resource group '{DEFAULT_GROUP}' has what the command line makes and cannot be deleted."
        )));
    }
    let target = call.names.group_id(&group.name);
    let work = DeleteGroup { group: group.name };
    let record = operations::new(call, target, &work);
    let id = operations::begin(call, record, Box::new(work))?;
    let record = operations::wait(call, id, operations::PATIENCE)?;
    match record.state {
        OperationState::Running => Ok(operations::accepted(call, &record, None)),
        OperationState::Succeeded => Ok(done(200)),
        OperationState::Failed | OperationState::Canceled => Err(operations::failure(&record)),
    }
}

/// The deletion of a group with all that is in it.
pub struct DeleteGroup {
    group: String,
}

impl DeleteGroup {
    /// What [`kept`](Work::kept) has kept, if it is a deletion.
    pub fn again(kept: &Value) -> Option<Self> {
        let group = text(kept, "/deleteGroup")?.into();
        Some(Self { group })
    }
}

impl Work for DeleteGroup {
    fn kept(&self) -> Value {
        json!({"deleteGroup": self.group})
    }

    fn perform(
        self: Box<Self>,
        call: &Call<'_>,
        record: &mut OperationRecord,
    ) -> Result<OperationState, ArmError> {
        delete(call, &self.group)?;
        record.answer["deleted"] = json!(true);
        Ok(OperationState::Succeeded)
    }
}

/// Deletes a group with all that is in it. What cannot go is named, and stays with the group. One that is gone
/// already is deleted.
fn delete(call: &Call<'_>, name: &str) -> Result<(), ArmError> {
    let id = call.names.group_id(name);
    call.require(&format!("{ACTION}/delete"), &id)?;
    // Each of which keeps the group from being deleted.
    importing::cancel_all(call, name)?;
    let _lock = call.changes.lock(&group_lock(name), call.what())?;
    if call.catalog().group(name)?.is_none() {
        return Ok(());
    }
    recorded(call, "ResourceGroupDelete", &id, || {
        // What makes more of what is being deleted.
        for deployment in call.catalog().deployments(name)? {
            call.catalog().cancel_operation(deployment)?;
        }
        for kind in call.types {
            delete_all(call, *kind, name)?;
        }
        // Whoever gives a role meanwhile gives it in this group before, or finds no group afterwards.
        let lock = call.installation().lock_policies()?;
        empty(call, &lock, name)?;
        forget_roles(call, &lock, &id)?;
        call.catalog().delete_group(name)?;
        Ok(())
    })
}

/// Takes away the roles at a scope that goes, and below it: whoever makes something of that name again is another. No
/// vault is left there that would have to follow.
fn forget_roles(call: &Call<'_>, _lock: &PolicyLock, scope: &str) -> Result<(), ArmError> {
    for role in call.catalog().role_assignments()? {
        if is_within(&role.scope, scope) {
            let detail = roles::detail(&role.scope, role.role, role.principal);
            recorded(call, roles::DELETE, &detail, || {
                Ok(call.catalog().delete_role_assignment(role.id)?)
            })?;
        }
    }
    Ok(())
}

/// A vault that is deleted softly can be recovered without its group, and without the roles there: into the first one.
fn empty(call: &Call<'_>, lock: &PolicyLock, group: &str) -> Result<(), ArmError> {
    let catalog = call.catalog();
    let assignments = catalog.role_assignments()?;
    let mut left = catalog.placements()?;
    left.retain(|placed| placed.group.eq_ignore_ascii_case(group));
    for placed in left {
        match catalog.name_of(placed.kind, &placed.name)? {
            Some(name) => {
                let kind = placed.kind;
                catalog.put_placement(&PlacementRecord {
                    group: DEFAULT_GROUP.into(),
                    ..placed
                })?;
                if kind == Kind::Vault {
                    follow_roles(call.installation(), lock, &name, &assignments)?;
                }
            }
            None => catalog.delete_placement(placed.kind, &placed.name)?,
        }
    }
    Ok(())
}

fn delete_all(
    call: &Call<'_>,
    kind: &'static dyn ResourceType,
    group: &str,
) -> Result<(), ArmError> {
    let wanted = Wanted {
        group: Some(group),
        after: None,
        limit: usize::MAX,
    };
    let mut all = placed(call, kind, &wanted)?;
    // A snapshot that is being copied into another one goes after that, which is newer.
    all.sort_by_key(|placed| Reverse(placed.created.at));
    let action = format!("{}/delete", kind.full_type());
    for placed in &all {
        call.require(&action, &call.id(placed))?;
    }
    for placed in &all {
        let name = name_lock(&kind.full_type(), &placed.name);
        let _lock = call.changes.lock(&name, call.what())?;
        call.refuse_locked(&action, &call.id(placed))?;
        let deleted = recorded(call, "ResourceDelete", &call.id(placed), || {
            call.changes.retrying(|| kind.delete(call, &placed.name))
        });
        deleted.map_err(|error| ArmError {
            detail: Some(Box::new((error.code.clone(), error.message.clone()))),
            ..ArmError::new(
                409,
                "ResourceGroupDeletionBlocked",
                format!(
                    "Deletion of resource group '{group}' failed as the resource '{}' could not be deleted: {}",
                    call.id(placed),
                    error.message
                ),
            )
        })?;
    }
    Ok(())
}

fn view(call: &Call<'_>, group: &GroupRecord) -> Value {
    json!({
        "id": call.names.group_id(&group.name),
        "name": group.name,
        "type": TYPE,
        "location": group.location,
        "tags": group.tags,
        "properties": {"provisioningState": "Succeeded"},
    })
}
