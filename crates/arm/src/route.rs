//! From a path to what answers it.

use server::{FrontReply, Head};

use crate::call::Call;
use crate::error::ArmError;
use crate::id::{ArmPath, Typed, segments};
use crate::reply::{exists, list};
use crate::resources::{self, Named};
use crate::{
    deleted_vaults, deployments, graph, groups, lists, locks, operations, role_requests,
    subscriptions,
};

/// Types of Azure's of which there are none here, and never a refusal: clients ask for all of them.
const EMPTY: [(&str, &str); 2] = [
    ("Microsoft.KeyVault", "managedHSMs"),
    ("Microsoft.KeyVault", "deletedManagedHSMs"),
];

/// Whether a request is for Graph.
pub fn is_graph(head: &Head) -> bool {
    let first = head.path.split('/').find(|word| !word.is_empty());
    first.is_some_and(|word| matches!(word, "v1.0" | "beta"))
}

/// Answers a request.
///
/// # Errors
/// Every refusal.
pub fn answer(call: &Call<'_>) -> Result<FrontReply, ArmError> {
    let wrong = |error: crate::id::PathError| {
        ArmError::new(
            400,
            "InvalidRequestUri",
            format!("The request is invalid: {error}."),
        )
    };
    if is_graph(call.head) {
        let words = segments(&call.head.path).map_err(wrong)?;
        return graph::answer(call, &words[1..]);
    }
    let path = ArmPath::parse(&call.head.path).map_err(wrong)?;
    if let Some(subscription) = &path.subscription
        && !subscription.eq_ignore_ascii_case(&call.names.subscription.to_string())
    {
        return Err(subscriptions::not_found(subscription));
    }
    match path.typed.as_slice() {
        [] => plain(call, &path),
        [.., last] if is_authorization(last) => authorization(call, &path, last),
        [typed] => one_type(call, &path, typed),
        _ => Err(not_found(call)),
    }
}

/// A subscription, a group, or a word below one.
fn plain(call: &Call<'_>, path: &ArmPath) -> Result<FrontReply, ArmError> {
    let group = path.group.as_deref();
    let get = call.head.method == "GET";
    if path.subscription.is_none() {
        return if get && path.is_words(&["subscriptions"]) {
            Ok(subscriptions::all(call))
        } else if get && path.is_words(&["tenants"]) {
            Ok(subscriptions::tenants(&call.names))
        } else {
            Err(not_found(call))
        };
    }
    if let ([word, id], None, true) = (path.words.as_slice(), group, get) {
        return match word.to_ascii_lowercase().as_str() {
            "operationstatuses" => operations::status(call, id),
            "operationresults" => operations::result(call, id),
            _ => Err(not_found(call)),
        };
    }
    match group {
        Some(group) if path.is_words(&[]) => groups::one(call, group),
        Some(group) if get && path.is_words(&["resources"]) => lists::list_all(call, Some(group)),
        // Azure has the operations of deployments at this path, without a provider.
        Some(group) if get && deployments::are_words(&path.words) => {
            deployments::answer(call, group, &path.words)
        }
        Some(_) => Err(not_found(call)),
        None if !get => Err(not_found(call)),
        None if path.is_words(&[]) => subscriptions::one(call),
        None if path.is_words(&["resourceGroups"]) => groups::all(call),
        None if path.is_words(&["resources"]) => lists::list_all(call, None),
        None if path.is_words(&["locations"]) => Ok(subscriptions::locations(&call.names)),
        None if path.is_words(&["providers"]) => Ok(subscriptions::providers(call)),
        None => Err(not_found(call)),
    }
}

fn is_authorization(typed: &Typed) -> bool {
    typed
        .provider
        .eq_ignore_ascii_case("Microsoft.Authorization")
        && !typed.types.is_empty()
}

/// Role assignments and definitions, and locks, at a scope: what precedes them.
fn authorization(call: &Call<'_>, path: &ArmPath, typed: &Typed) -> Result<FrontReply, ArmError> {
    let outer = ArmPath {
        typed: path.typed[..path.typed.len() - 1].to_vec(),
        words: Vec::new(),
        ..path.clone()
    };
    let scope = outer.to_string();
    let get = call.head.method == "GET";
    let name = typed.names.first().map(String::as_str);
    match name {
        None if get && typed.is("Microsoft.Authorization", &["roleAssignments"]) => {
            role_requests::assignments(call, &scope)
        }
        Some(name) if typed.is("Microsoft.Authorization", &["roleAssignments"]) => {
            role_requests::assignment(call, &scope, name)
        }
        None if get && typed.is("Microsoft.Authorization", &["roleDefinitions"]) => {
            Ok(role_requests::definitions(call))
        }
        Some(name) if get && typed.is("Microsoft.Authorization", &["roleDefinitions"]) => {
            role_requests::definition(call, name)
        }
        None if get && typed.is("Microsoft.Authorization", &["locks"]) => locks::all(call, &scope),
        Some(name) if typed.is("Microsoft.Authorization", &["locks"]) => {
            locks::one(call, &scope, name)
        }
        _ => Err(not_found(call)),
    }
}

/// Resources of a type, one of them, or what is below one.
fn one_type(call: &Call<'_>, path: &ArmPath, typed: &Typed) -> Result<FrontReply, ArmError> {
    let method = call.head.method.as_str();
    let names: Vec<&str> = typed.names.iter().map(String::as_str).collect();
    if let (Some(group), true) = (&path.group, deployments::are(typed)) {
        return deployments::answer(call, group, &words_of(typed));
    }
    if path.group.is_none() {
        let register = typed.is(&typed.provider, &["register"]) && method == "POST";
        if typed.types.is_empty() && method == "GET" || register {
            return subscriptions::one_provider(call, &typed.provider);
        }
        if typed.is("Microsoft.KeyVault", &["deletedVaults"]) && names.is_empty() && method == "GET"
        {
            return deleted_vaults::all(call);
        }
        let action = typed.types.get(2).map(String::as_str);
        let mut nested = vec!["locations", "deletedVaults"];
        nested.extend(action);
        if let [_, name] = names.as_slice()
            && typed.is("Microsoft.KeyVault", &nested)
        {
            return deleted_vaults::one(call, name, action);
        }
    }
    let is_empty = |(provider, kind): &(&str, &str)| typed.is(provider, &[kind]);
    if names.is_empty() && method == "GET" && EMPTY.iter().any(is_empty) {
        return Ok(list(Vec::new(), None));
    }
    let first = typed.types.first().map_or("", String::as_str);
    let Some(kind) = call.type_of(&typed.provider, first) else {
        return Err(no_type(call, path, typed));
    };
    match (path.group.as_deref(), names.as_slice()) {
        (group, []) if method == "GET" && typed.types.len() == 1 => {
            lists::list_type(call, kind, group)
        }
        (Some(group), [name, ..]) => {
            let named = Named { kind, group, name };
            match method {
                _ if typed.types.len() > 1 => resources::below(call, &named, &words_below(typed)),
                "GET" => resources::get(call, &named),
                "HEAD" => exists(resources::get(call, &named)),
                "PUT" => resources::put(call, &named, false),
                "PATCH" => resources::put(call, &named, true),
                "DELETE" => resources::delete(call, &named),
                _ => Err(ArmError::new(
                    405,
                    "MethodNotAllowed",
                    format!("'{method}' is not what can be done with a resource."),
                )),
            }
        }
        _ => Err(not_found(call)),
    }
}

/// The words that follow the name of a resource.
fn words_below(typed: &Typed) -> Vec<String> {
    words_of(typed).into_iter().skip(2).collect()
}

/// Types and names in turn.
fn words_of(typed: &Typed) -> Vec<String> {
    let mut words = Vec::new();
    let mut names = typed.names.iter();
    for kind in &typed.types {
        words.push(kind.clone());
        words.extend(names.next().cloned());
    }
    words
}

/// Of a type that there is not: a resource of it is not found, as clients that look for one expect.
fn no_type(call: &Call<'_>, path: &ArmPath, typed: &Typed) -> ArmError {
    match (&path.group, typed.names.first()) {
        (Some(group), Some(name)) if call.head.method == "GET" => {
            ArmError::no_resource(&typed.full_type(), name, group)
        }
        _ => ArmError::new(
            404,
            "InvalidResourceType",
            format!(
                "The resource type '{}' could not be found in the namespace '{}' for api version '{}'.",
                typed.types.join("/"),
                typed.provider,
                call.query.api_version
            ),
        ),
    }
}

fn not_found(call: &Call<'_>) -> ArmError {
    let path: String = call.head.path.chars().take(200).collect();
    let method = &call.head.method;
    ArmError::new(
        404,
        "NotFound",
        format!("There is nothing at {method} {path} here."),
    )
}
