//! The one subscription, the one tenant, the one location, and the providers, all of which are registered.

use serde_json::{Value, json};
use server::FrontReply;

use crate::call::Call;
use crate::error::ArmError;
use crate::names::Names;
use crate::reply::{item, list};
use crate::roles::has_any;
use installation::catalog::LOCATION;

/// What is said of versions: any date is one.
const API_VERSIONS: [&str; 3] = ["2026-02-01", "2025-01-02", "2024-07-01"];
/// Providers that have something here besides types of resources.
const OTHERS: [&str; 2] = ["Microsoft.Authorization", "Microsoft.Resources"];

/// `GET /subscriptions`: none for whoever may do nothing in it.
pub fn all(call: &Call<'_>) -> FrontReply {
    let visible = has_any(&call.roles);
    list(
        visible.then(|| view(&call.names)).into_iter().collect(),
        None,
    )
}

/// `GET /subscriptions/S`
///
/// # Errors
/// 404 for another one.
pub fn one(call: &Call<'_>) -> Result<FrontReply, ArmError> {
    match has_any(&call.roles) {
        true => Ok(item(view(&call.names))),
        false => Err(not_found(&call.names.subscription.to_string())),
    }
}

/// 404, in Azure's words.
pub fn not_found(subscription: &str) -> ArmError {
    let message = format!("The subscription '{subscription}' could not be found.");
    ArmError::new(404, "SubscriptionNotFound", message)
}

fn view(names: &Names) -> Value {
    json!({
        "id": names.subscription_id(),
        "subscriptionId": names.subscription,
        "tenantId": names.tenant,
        "displayName": "Sealdisk",
        "state": "Enabled",
        "authorizationSource": "RoleBased",
        "subscriptionPolicies": {
            "locationPlacementId": "Sealdisk",
            "quotaId": "Sealdisk",
            "spendingLimit": "Off",
        },
    })
}

/// `GET /tenants`
pub fn tenants(names: &Names) -> FrontReply {
    let tenant = json!({
        "id": format!("/tenants/{}", names.tenant),
        "tenantId": names.tenant,
        "displayName": "Sealdisk",
        "tenantCategory": "Home",
    });
    list(vec![tenant], None)
}

/// `GET …/locations`
pub fn locations(names: &Names) -> FrontReply {
    let location = json!({
        "id": format!("{}/locations/{LOCATION}", names.subscription_id()),
        "subscriptionId": names.subscription,
        "name": LOCATION,
        "type": "Region",
        "displayName": "Local",
        "regionalDisplayName": "Local",
        "metadata": {"regionType": "Physical", "regionCategory": "Recommended"},
    });
    list(vec![location], None)
}

/// `GET …/providers`
pub fn providers(call: &Call<'_>) -> FrontReply {
    let mut spaces: Vec<&str> = OTHERS.to_vec();
    for kind in call.types {
        if !spaces.contains(&kind.provider()) {
            spaces.push(kind.provider());
        }
    }
    spaces.sort_unstable();
    list(
        spaces.iter().map(|space| provider(call, space)).collect(),
        None,
    )
}

/// `GET …/providers/NS`, and `POST …/providers/NS/register`, which changes nothing.
///
/// # Errors
/// 404 for one that there is not.
pub fn one_provider(call: &Call<'_>, space: &str) -> Result<FrontReply, ArmError> {
    let known = call.types.iter().map(|kind| kind.provider()).chain(OTHERS);
    let found = known
        .into_iter()
        .find(|known| known.eq_ignore_ascii_case(space));
    match found {
        Some(space) => Ok(item(provider(call, space))),
        None => {
            let message = format!("The resource namespace '{space}' is invalid.");
            Err(ArmError::new(404, "InvalidResourceNamespace", message))
        }
    }
}

fn provider(call: &Call<'_>, space: &str) -> Value {
    let types: Vec<Value> = call
        .types
        .iter()
        .filter(|kind| kind.provider() == space)
        .map(|kind| {
            json!({
                "resourceType": kind.name(),
                "locations": [LOCATION],
                "apiVersions": API_VERSIONS,
                "capabilities": "SupportsTags",
            })
        })
        .collect();
    json!({
        "id": format!("{}/providers/{space}", call.names.subscription_id()),
        "namespace": space,
        "registrationState": "Registered",
        "registrationPolicy": "RegistrationFree",
        "resourceTypes": types,
    })
}
