//! How Graph shows who somebody is.

use serde_json::{Value, json};

use crate::identities::PrincipalView;
use crate::names::time_text;
use installation::catalog::IdentityRecord;

/// A service principal.
pub fn service_principal(principal: &PrincipalView) -> Value {
    // az shows the first name of each; a set that has asked for no token yet has no client id.
    let id = principal.client_id.unwrap_or(principal.object_id);
    let application = principal.application.as_ref();
    let kind = match application {
        Some(_) => "Application",
        None => "ManagedIdentity",
    };
    json!({
        "@odata.type": "#microsoft.graph.servicePrincipal",
        "id": principal.object_id,
        "appId": id,
        "displayName": principal.name,
        "servicePrincipalType": kind,
        "servicePrincipalNames": [id],
        "accountEnabled": true,
        "passwordCredentials": application.map_or_else(Vec::new, passwords),
        "keyCredentials": [],
    })
}

/// An application.
pub fn application(record: &IdentityRecord) -> Value {
    json!({
        "@odata.type": "#microsoft.graph.application",
        "id": record.object_id,
        "appId": record.client_id,
        "displayName": record.owner.name(),
        "createdDateTime": time_text(record.created),
        "signInAudience": "AzureADMyOrg",
        "identifierUris": [],
        "requiredResourceAccess": [],
        "passwordCredentials": passwords(record),
        "keyCredentials": [],
    })
}

/// What is told of the password that an application has.
fn passwords(record: &IdentityRecord) -> Vec<Value> {
    let id = record.password_id();
    let told = id.map(|id| json!({"keyId": id, "endDateTime": record.secret_ends.map(time_text)}));
    told.into_iter().collect()
}
