//! Role assignments and definitions in the API, at any scope.

use serde_json::{Value, json};
use server::FrontReply;
use uuid::Uuid;

use crate::audit::recorded;
use crate::call::Call;
use crate::error::{ArmError, text};
use crate::id::is_within;
use crate::names::{Names, time_text};
use crate::reply::{created, done, exists, item, list};
use crate::roles::{self, NewAssignment, ROLES, Role, assign, detail, remove, role};
use installation::catalog::RoleAssignmentRecord;

const ASSIGNMENTS: &str = "Microsoft.Authorization/roleAssignments";
const DEFINITIONS: &str = "Microsoft.Authorization/roleDefinitions";

/// `GET {scope}/providers/Microsoft.Authorization/roleAssignments`
pub fn assignments(call: &Call<'_>, scope: &str) -> Result<FrontReply, ArmError> {
    call.require(&format!("{ASSIGNMENTS}/read"), scope)?;
    let filter = &call.query.filter;
    let not_below = filter.has_call("atScope");
    let of = filter
        .value_of("principalId")
        .or_else(|| filter.argument_of("assignedTo"));
    let wanted = |record: &RoleAssignmentRecord| {
        (is_within(scope, &record.scope) || !not_below && is_within(&record.scope, scope))
            && of.is_none_or(|id| Uuid::try_parse(id).is_ok_and(|id| id == record.principal))
    };
    let all = call.catalog().role_assignments()?;
    let found = all.iter().filter(|record| wanted(record));
    Ok(list(
        found.map(|record| view(&call.names, record)).collect(),
        None,
    ))
}

/// A role assignment, whose name follows the scope.
pub fn assignment(call: &Call<'_>, scope: &str, name: &str) -> Result<FrontReply, ArmError> {
    let id = Uuid::try_parse(name).map_err(|_| {
        ArmError::new(
            400,
            "InvalidRoleAssignmentId",
            format!("The role assignment ID '{name}' is not valid. The role assignment ID must be a GUID."),
        )
    })?;
    let action = |verb: &str| format!("{ASSIGNMENTS}/{verb}");
    let all = call.catalog().role_assignments()?;
    let known = all
        .iter()
        .find(|record| record.id == id && record.scope.eq_ignore_ascii_case(scope));
    let read = || {
        call.require(&action("read"), scope)?;
        let known = known.ok_or_else(|| {
            let message = format!("The role assignment '{name}' is not found.");
            ArmError::new(404, "RoleAssignmentNotFound", message)
        })?;
        Ok(item(view(&call.names, known)))
    };
    match call.head.method.as_str() {
        "GET" => read(),
        "HEAD" => exists(read()),
        "PUT" => {
            call.require(&action("write"), scope)?;
            let (record, is_new) = put(call, scope, id)?;
            let view = view(&call.names, &record);
            Ok(if is_new { created(view) } else { item(view) })
        }
        "DELETE" => {
            call.require(&action("delete"), scope)?;
            let removed = match known {
                Some(known) => {
                    let detail = detail(&known.scope, known.role, known.principal);
                    recorded(call, roles::DELETE, &detail, || {
                        remove(call.installation(), id)
                    })?
                }
                None => None,
            };
            Ok(match removed {
                Some(record) => item(view(&call.names, &record)),
                None => done(204),
            })
        }
        _ => Err(ArmError::new(
            405,
            "MethodNotAllowed",
            "A role assignment is read, put or deleted.",
        )),
    }
}

fn put(call: &Call<'_>, scope: &str, id: Uuid) -> Result<(RoleAssignmentRecord, bool), ArmError> {
    let body = &call.body;
    let of = |name: &str| {
        let pointer = format!("/properties/{name}");
        // Earlier versions have them outside.
        text(body, &pointer).or_else(|| text(body, &format!("/{name}")))
    };
    let missing = |name: &str| {
        ArmError::parameter(
            name,
            format!("Required parameter '{name}' is missing (null)."),
        )
    };
    for name in ["condition", "delegatedManagedIdentityResourceId"] {
        if of(name).is_some() {
            return Err(ArmError::not_offered(
                name,
                "conditions and delegation of roles",
            ));
        }
    }
    let principal = of("principalId").ok_or_else(|| missing("principalId"))?;
    let principal = Uuid::try_parse(principal).map_err(|_| {
        ArmError::new(
            400,
            "InvalidPrincipalId",
            "A valid principal ID must be provided for role assignment.",
        )
    })?;
    let role = of("roleDefinitionId").ok_or_else(|| missing("roleDefinitionId"))?;
    let role = role
        .rsplit('/')
        .next()
        .and_then(|id| Uuid::try_parse(id).ok());
    let role = role.ok_or_else(|| {
        ArmError::new(
            400,
            "InvalidRoleDefinitionId",
            "The role definition ID ends in no GUID.",
        )
    })?;
    let new = NewAssignment {
        id,
        scope,
        role,
        principal,
        principal_type: of("principalType").unwrap_or("ServicePrincipal"),
        by: call.touch(),
    };
    recorded(call, roles::WRITE, &detail(scope, role, principal), || {
        assign(call.installation(), &new)
    })
}

fn view(names: &Names, record: &RoleAssignmentRecord) -> Value {
    let created = time_text(record.created.at);
    json!({
        "id": format!("{}/providers/{ASSIGNMENTS}/{}", record.scope, record.id),
        "type": ASSIGNMENTS,
        "name": record.id,
        "properties": {
            "roleDefinitionId": definition_id(names, record.role),
            "principalId": record.principal,
            "principalType": record.principal_type,
            "scope": record.scope,
            "condition": null,
            "conditionVersion": null,
            "createdOn": created,
            "updatedOn": created,
            "createdBy": record.created.by,
            "updatedBy": record.created.by,
            "delegatedManagedIdentityResourceId": null,
            "description": null,
        },
    })
}

fn definition_id(names: &Names, role: Uuid) -> String {
    format!("{}/providers/{DEFINITIONS}/{role}", names.subscription_id())
}

/// `GET {scope}/providers/Microsoft.Authorization/roleDefinitions`
pub fn definitions(call: &Call<'_>) -> FrontReply {
    let filter = &call.query.filter;
    let named = filter.value_of("roleName");
    let custom = filter
        .value_of("type")
        .is_some_and(|kind| kind.eq_ignore_ascii_case("CustomRole"));
    let wanted =
        |role: &&Role| !custom && named.is_none_or(|name| role.name.eq_ignore_ascii_case(name));
    let found = ROLES.iter().filter(wanted);
    list(
        found
            .map(|role| definition_view(&call.names, role))
            .collect(),
        None,
    )
}

/// One role definition.
pub fn definition(call: &Call<'_>, name: &str) -> Result<FrontReply, ArmError> {
    let found = Uuid::try_parse(name).ok().and_then(role);
    let found = found.ok_or_else(|| {
        let message = format!("The specified role definition with ID '{name}' does not exist.");
        ArmError::new(404, "RoleDefinitionDoesNotExist", message)
    })?;
    Ok(item(definition_view(&call.names, found)))
}

fn definition_view(names: &Names, role: &Role) -> Value {
    json!({
        "id": definition_id(names, role.id),
        "type": DEFINITIONS,
        "name": role.id,
        "properties": {
            "roleName": role.name,
            "type": "BuiltInRole",
            "description": role.description,
            "assignableScopes": ["/"],
            "permissions": [{
                "actions": role.actions,
                "notActions": role.not_actions,
                "dataActions": role.data_actions,
                "notDataActions": [],
            }],
        },
    })
}
