//! Whom a key vault sees when a disk encryption set uses its key: an identity of the set's own, one of a user, or one
//! of another installation that trusts that one (`federatedClientId`).

use serde_json::{Value, json};
use uuid::Uuid;

use super::bodies::{one_of, optional_text};
use super::sources::{Linked, id_of};

use crate::call::{Call, Put};
use crate::error::ArmError;
use installation::catalog::{DesIdentity, DiskEncryptionSetRecord, IdentityOwner, Kind};

const SYSTEM: &str = "SystemAssigned";
const USER: &str = "UserAssigned";
const BOTH: &str = "SystemAssigned, UserAssigned";
const USERS: &str = "identity.userAssignedIdentities";
const CLIENT: &str = "properties.federatedClientId";
/// What whoever gives an identity to a set does with it.
const ASSIGN: &str = "assign/action";

/// The identity that a body wants a set to have; `None` leaves it as it is.
///
/// # Errors
/// 400 and 404; 403 for one that whoever asks may not assign.
pub fn wanted_identity(call: &Call<'_>, put: &Put<'_>) -> Result<Option<DesIdentity>, ArmError> {
    let body = put.body;
    let now = match put.exists {
        true => Some(call.catalog().des(&put.placed.name)?.record.identity),
        false => None,
    };
    let federated = federated_client(body)?;
    check_client(call, federated, now.as_ref())?;
    let kind = one_of(body, "/identity/type", &[SYSTEM, "None", USER, BOTH])?;
    let wanted = match (kind, &now) {
        (None, Some(DesIdentity::UserAssigned { object_id, .. })) if federated.is_some() => {
            user(*object_id, federated, now.as_ref())
        }
        (None, _) => return refuse_federated(federated).map(|()| None),
        (Some(USER), _) => user(
            user_assigned(call, body, now.as_ref())?,
            federated,
            now.as_ref(),
        ),
        (Some(BOTH), _) => {
            return Err(ArmError::not_offered(
                "identity.type",
                "two identities of one disk encryption set",
            ));
        }
        (Some(kind), _) => {
            refuse_federated(federated)?;
            match kind {
                SYSTEM => DesIdentity::SystemAssigned,
                _ => DesIdentity::None,
            }
        }
    };
    Ok(Some(wanted))
}

/// Whoever has the identity of a set act as another client lets the set do what that client may: it takes the right to
/// give the identity to a set, though the set has it already.
fn check_client(
    call: &Call<'_>,
    federated: Option<Option<Uuid>>,
    now: Option<&DesIdentity>,
) -> Result<(), ArmError> {
    match (now, federated.flatten()) {
        (
            Some(DesIdentity::UserAssigned {
                object_id,
                federated_client_id,
            }),
            Some(client),
        ) if *federated_client_id != Some(client) => {
            let id = id_of_identity(call, *object_id)?;
            let action = format!("{}/{ASSIGN}", call.full_type(Kind::Identity));
            call.require_linked(&action, &id.unwrap_or_else(|| call.names.subscription_id()))
        }
        _ => Ok(()),
    }
}

/// The identity of a user, with the client that a body names, or the one that there is.
fn user(
    object_id: Uuid,
    federated: Option<Option<Uuid>>,
    now: Option<&DesIdentity>,
) -> DesIdentity {
    let before = match now {
        Some(DesIdentity::UserAssigned {
            federated_client_id,
            ..
        }) => *federated_client_id,
        _ => None,
    };
    DesIdentity::UserAssigned {
        object_id,
        federated_client_id: federated.unwrap_or(before),
    }
}

/// `federatedClientId` of a body: `Some(None)` takes it away.
fn federated_client(body: &Value) -> Result<Option<Option<Uuid>>, ArmError> {
    match optional_text(body, "/properties/federatedClientId")? {
        None => Ok(None),
        Some(id) if id.eq_ignore_ascii_case("none") => Ok(Some(None)),
        Some(id) => Uuid::try_parse(id).map(|id| Some(Some(id))).map_err(|_| {
            let why = format!(
                "The value of parameter {CLIENT} is invalid: it is the client id of an application."
            );
            ArmError::parameter(CLIENT, why)
        }),
    }
}

/// A federated client trusts the identity of a user.
fn refuse_federated(federated: Option<Option<Uuid>>) -> Result<(), ArmError> {
    match federated.flatten() {
        None => Ok(()),
        Some(_) => {
            let why =
                format!("'{CLIENT}' needs a user-assigned identity, which the client trusts.");
            Err(ArmError::parameter(CLIENT, why))
        }
    }
}

/// The object id of the one identity that a body names.
fn user_assigned(
    call: &Call<'_>,
    body: &Value,
    now: Option<&DesIdentity>,
) -> Result<Uuid, ArmError> {
    let wrong = |why: String| ArmError::parameter(USERS, why);
    let given = match body.pointer("/identity/userAssignedIdentities") {
        None | Some(Value::Null) => None,
        Some(Value::Object(given)) => Some(given),
        Some(_) => {
            return Err(wrong(format!(
                "The value of parameter {USERS} is no object."
            )));
        }
    };
    // null takes an identity away that the set had.
    let is_there = |(_, value): &(&String, &Value)| !value.is_null();
    let mut ids: Vec<&str> = given
        .into_iter()
        .flatten()
        .filter(is_there)
        .map(|(id, _)| id.as_str())
        .collect();
    let before = match now {
        Some(DesIdentity::UserAssigned { object_id, .. }) => {
            id_of_identity(call, *object_id)?.map(|id| (id, *object_id))
        }
        _ => None,
    };
    let is_before =
        |id: &str| matches!(&before, Some((before, _)) if before.eq_ignore_ascii_case(id));
    // A PATCH adds the new one to that which there is, and a set has one.
    if ids.len() > 1 {
        ids.retain(|id| !is_before(id));
    }
    let id = match (ids.as_slice(), now) {
        ([id], _) => *id,
        ([], Some(DesIdentity::UserAssigned { object_id, .. })) if given.is_none() => {
            return Ok(*object_id);
        }
        ([], _) => {
            return Err(wrong(format!(
                "Required parameter '{USERS}' is missing (null)."
            )));
        }
        _ => {
            return Err(wrong(
                "A disk encryption set has one user-assigned identity.".into(),
            ));
        }
    };
    // What the set has already need not be allowed again.
    if let Some((_, object_id)) = before.as_ref().filter(|_| is_before(id)) {
        return Ok(*object_id);
    }
    let linked = Linked::parse(call, USERS, id)?;
    if linked.kind.kind() != Kind::Identity {
        return Err(wrong(format!("'{id}' is no user-assigned identity.")));
    }
    // Whoever gives the identity to a set lets the set do what the identity may.
    let placed = linked.find(call, ASSIGN)?;
    Ok(call.catalog().identity(&placed.name)?.record.object_id)
}

/// The id of a user-assigned identity, if it is there.
fn id_of_identity(call: &Call<'_>, object_id: Uuid) -> Result<Option<String>, ArmError> {
    let found = call.catalog().identity_by_object(object_id)?;
    Ok(found.and_then(|found| match &found.owner {
        IdentityOwner::Named(name) => Some(id_of(call, Kind::Identity, name)),
        _ => None,
    }))
}

/// `identity` of an answer.
///
/// # Errors
/// When the catalog cannot be read.
pub fn identity_view(call: &Call<'_>, record: &DiskEncryptionSetRecord) -> Result<Value, ArmError> {
    match &record.identity {
        DesIdentity::None => Ok(json!({"type": "None"})),
        DesIdentity::UserAssigned { object_id, .. } => {
            let mut users = json!({});
            if let Some(found) = call.catalog().identity_by_object(*object_id)?
                && let IdentityOwner::Named(name) = &found.owner
            {
                users[id_of(call, Kind::Identity, name)] =
                    json!({"principalId": object_id, "clientId": found.client_id});
            }
            Ok(json!({"type": USER, "userAssignedIdentities": users}))
        }
        DesIdentity::SystemAssigned | DesIdentity::Imds { .. } | DesIdentity::Endpoint { .. } => {
            Ok(json!({
                "type": SYSTEM,
                "principalId": record.principal_id,
                "tenantId": call.names.tenant,
            }))
        }
    }
}
