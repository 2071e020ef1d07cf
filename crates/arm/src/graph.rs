//! As much of Microsoft Graph as Azure's clients ask for: who somebody is, and applications.

use serde_json::{Value, json};
use server::FrontReply;
use uuid::Uuid;

use crate::applications;
use crate::call::Call;
use crate::error::ArmError;
use crate::graph_views::service_principal;
use crate::identities::{PrincipalView, Principals, find, named};
use crate::reply::{item, list};
use crate::roles::has_any;

/// Most ids that are asked for at once, as in Graph.
const IDS: usize = 1000;

/// Answers a request whose path begins with the version.
///
/// # Errors
/// Every refusal.
pub fn answer(call: &Call<'_>, words: &[String]) -> Result<FrontReply, ArmError> {
    let words: Vec<String> = words.iter().map(|word| word.to_ascii_lowercase()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match (call.head.method.as_str(), words.as_slice()) {
        ("GET", ["me"]) => Err(ArmError::new(
            400,
            "Request_BadRequest",
            "/me request is only valid with delegated authentication flow.",
        )),
        ("GET", ["serviceprincipals"]) => service_principals(call),
        ("GET", ["serviceprincipals", id]) => one(call, id),
        ("GET", ["users" | "groups"]) => Ok(list(Vec::new(), None)),
        ("POST", ["directoryobjects", "getbyids"]) => by_ids(call),
        ("GET", ["applications"]) => applications::all(call),
        ("GET", ["applications", id]) => applications::one(call, id),
        ("POST", ["applications"]) => applications::create(call),
        ("POST", ["serviceprincipals"]) => applications::create_principal(call),
        // Both are one here.
        ("PATCH", ["applications" | "serviceprincipals", id]) => applications::patch(call, id),
        ("DELETE", ["applications" | "serviceprincipals", id]) => applications::delete(call, id),
        ("POST", ["applications" | "serviceprincipals", id, "addpassword"]) => {
            applications::add_password(call, id)
        }
        ("POST", ["applications" | "serviceprincipals", id, "removepassword"]) => {
            applications::remove_password(call, id)
        }
        _ => Err(ArmError::new(
            404,
            "Request_ResourceNotFound",
            "The resource does not exist: of Graph there are service principals, applications and getByIds here.",
        )),
    }
}

fn service_principals(call: &Call<'_>) -> Result<FrontReply, ArmError> {
    let filter = &call.query.filter;
    let wanted = ["servicePrincipalNames", "appId", "id", "displayName"]
        .iter()
        .find_map(|field| filter.value_of(field));
    let Some(wanted) = wanted else {
        let found = applications::matching(call, false)?.into_iter();
        return Ok(list(
            found
                .map(|found| service_principal(&found.into()))
                .collect(),
            None,
        ));
    };
    // az's name for whoever has logged in with a managed identity.
    let found = match wanted {
        "systemAssignedIdentity" | "userAssignedIdentity" => {
            find(call.installation(), call.principal.object_id)?
        }
        name => named(call.installation(), name)?,
    };
    let seen = found.iter().filter_map(|found| seen(call, found));
    Ok(list(seen.collect(), None))
}

/// How whoever asks sees somebody: an identity without a role here sees itself alone. Whether another one has a password,
/// and until when, is for those who may read applications.
fn seen(call: &Call<'_>, principal: &PrincipalView) -> Option<Value> {
    let is_own = principal.object_id == call.principal.object_id;
    if !is_own && !has_any(&call.roles) {
        return None;
    }
    let mut view = service_principal(principal);
    if !is_own && !applications::may_read(call) {
        view["passwordCredentials"] = json!([]);
    }
    Some(view)
}

fn one(call: &Call<'_>, id: &str) -> Result<FrontReply, ArmError> {
    let found = match Uuid::try_parse(id) {
        Ok(id) => find(call.installation(), id)?,
        Err(_) => None,
    };
    match found.and_then(|found| seen(call, &found)) {
        Some(found) => Ok(item(found)),
        None => Err(ArmError::new(
            404,
            "Request_ResourceNotFound",
            format!(
                "Resource '{id}' does not exist or one of its queried reference-property objects are not present."
            ),
        )),
    }
}

fn by_ids(call: &Call<'_>) -> Result<FrontReply, ArmError> {
    let ids = call.body.get("ids").and_then(Value::as_array);
    let ids = ids.filter(|ids| ids.len() <= IDS).ok_or_else(|| {
        let message = format!("'ids' has to be a list of {IDS} object ids at most.");
        ArmError::new(400, "Request_BadRequest", message)
    })?;
    let principals = Principals::of(call.installation());
    let mut found = Vec::new();
    for id in ids {
        let id = id.as_str().and_then(|id| Uuid::try_parse(id).ok());
        if let Some(id) = id
            && let Some(principal) = principals.find(id)?
        {
            found.extend(seen(call, &principal));
        }
    }
    Ok(list(found, None))
}
