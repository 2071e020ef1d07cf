//! What a deployment would change, found out by reading: nothing is made.
//!
//! Each resource of the template is evaluated as if those before it had been made, and compared with what there is. What
//! it does not say stays as it is, as in a PUT: so what only the server says of a resource is no change. Where it refers
//! to what is known of another only once that is made, it is not told what it would become. What a PUT of a resource
//! would refuse is refused here: nobody is promised what a deployment does not do.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use uuid::Uuid;

use super::differences::{Difference, differences};
use super::prepare::refused;
use super::run::{Deployment, found};
use super::secrets::HIDDEN;
use super::shown::{shown, told};
use crate::call::{Call, Wanted};
use crate::error::ArmError;
use crate::id::ArmPath;
use crate::operations::Worker;
use crate::placed::placed;
use crate::places::summary;
use crate::resources::{self, Named, patched};
use crate::types::import_source::hide_signatures;
use templates::{PlannedResource, Resource, Step};

/// `{"status", "properties": {"changes"}}`; with `only_ids` without what would become of each resource.
///
/// # Errors
/// When what there is cannot be read, and what the PUT of a resource would refuse.
pub fn what_if(
    call: &Call<'_>,
    mut deployment: Deployment,
    group: &str,
    only_ids: bool,
) -> Result<Value, ArmError> {
    let planned = deployment.plan.resources().filter(|it| it.made);
    let planned: Vec<PlannedResource> = planned.cloned().collect();
    let (mut changes, unknown) = foreseen(call, &mut deployment, only_ids)?;
    for resource in &planned[changes.len().min(planned.len())..] {
        let why = unknown.as_deref().unwrap_or_default();
        changes.push(json!({
            "resourceId": resource.id,
            "changeType": "Unsupported",
            "unsupportedReason": format!(
                "What becomes of it is known once what it refers to is made. {why}"
            ),
        }));
    }
    let mut changes = Value::Array(changes);
    deployment.secrets.hide(&mut changes);
    hide_signatures(&mut changes);
    if let Value::Array(changes) = &mut changes {
        let ids = planned.iter().map(|it| it.id.to_ascii_lowercase());
        changes.extend(ignored(call, group, &ids.collect(), only_ids)?);
    }
    Ok(json!({
        "status": "Succeeded",
        "properties": {"correlationId": Uuid::new_v4(), "changes": changes},
    }))
}

/// What becomes of the resources, in their order, up to the first that cannot be evaluated, and why it cannot.
fn foreseen(
    call: &Call<'_>,
    deployment: &mut Deployment,
    only_ids: bool,
) -> Result<(Vec<Value>, Option<String>), ArmError> {
    let (plan, worker) = (&mut deployment.plan, &Worker::of_call(call));
    let (mut changes, mut anything_made) = (Vec::new(), false);
    loop {
        let noted = match plan.next_step() {
            Err(error) => return Ok((changes, Some(error.to_string()))),
            Ok(Step::Done(_)) => return Ok((changes, None)),
            Ok(Step::Read { id, api_version }) => {
                let there = found(worker.ask("GET", &id, &api_version, Value::Null))?;
                plan.found(there)
            }
            Ok(Step::Create(resource)) => {
                let (id, version) = (&resource.id, &resource.api_version);
                let before = found(worker.ask("GET", id, version, Value::Null))?;
                check(worker, &resource, anything_made)?;
                anything_made |= before.is_none();
                let (resource, before) = shown(&resource, before.as_ref());
                let after = after(&resource, before.as_ref());
                changes.push(change(&resource, before.as_ref(), &after, only_ids));
                plan.made(after)
            }
        };
        if let Err(error) = noted {
            return Ok((changes, Some(error.to_string())));
        }
    }
}

/// Refuses what the PUT of a resource would refuse. What is not there, or not permitted, may be so only until a resource
/// before it is made.
fn check(worker: &Worker<'_>, resource: &Resource, anything_made: bool) -> Result<(), ArmError> {
    let Resource {
        id, api_version, ..
    } = resource;
    let body = resource.body.clone();
    let checked = worker.as_call("PUT", id, api_version, body, |call| {
        let path = ArmPath::parse(id).map_err(|error| {
            let message = format!("The request is invalid: {error}.");
            ArmError::new(400, "InvalidRequestUri", message)
        })?;
        let (Some(group), [typed]) = (&path.group, path.typed.as_slice()) else {
            return Ok(());
        };
        match (typed.types.as_slice(), typed.names.as_slice()) {
            ([word], [name]) => match call.type_of(&typed.provider, word) {
                Some(kind) => resources::check(call, &Named { kind, group, name }),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    });
    match checked {
        Err(error) if anything_made && matches!(error.status, 403 | 404) => Ok(()),
        // It refers to what is hidden of a resource before it; its PUT has the value itself.
        Err(_) if resource.body.to_string().contains(HIDDEN) => Ok(()),
        checked => checked.map_err(|error| refused(id, told(resource, error))),
    }
}

/// A resource as it would be.
fn after(resource: &Resource, before: Option<&Value>) -> Value {
    let mut after = match before {
        Some(before) => patched(before, &resource.body),
        None => resource.body.clone(),
    };
    for (field, value) in [
        ("id", &resource.id),
        ("name", &resource.name),
        ("type", &resource.resource_type),
    ] {
        if after.get(field).is_none() {
            after[field] = json!(value);
        }
    }
    after
}

fn change(resource: &Resource, before: Option<&Value>, after: &Value, only_ids: bool) -> Value {
    let with_version = |body: &Value| {
        let mut body = body.clone();
        body["apiVersion"] = json!(resource.api_version);
        body
    };
    let (kind, delta) = match before {
        None => ("Create", Vec::new()),
        Some(_) if only_ids => ("Deploy", Vec::new()),
        Some(before) => match differences(before, &resource.body) {
            delta if delta.is_empty() => ("NoChange", delta),
            delta => ("Modify", delta),
        },
    };
    let mut change = json!({"resourceId": resource.id, "changeType": kind});
    if only_ids {
        return change;
    }
    change["after"] = with_version(after);
    if let Some(before) = before {
        change["before"] = with_version(before);
        change["delta"] = delta.iter().map(Difference::view).collect();
    }
    change
}

/// What is in the group, and stays as it is, since the template does not have it.
fn ignored(
    call: &Call<'_>,
    group: &str,
    planned: &BTreeSet<String>,
    only_ids: bool,
) -> Result<Vec<Value>, ArmError> {
    let wanted = Wanted {
        group: Some(group),
        after: None,
        limit: usize::MAX,
    };
    let mut changes = Vec::new();
    for kind in call.types {
        let action = format!("{}/read", kind.full_type());
        for placed in placed(call, *kind, &wanted)? {
            let id = call.id(&placed);
            if planned.contains(&id.to_ascii_lowercase()) || !call.may(&action, &id) {
                continue;
            }
            let mut change = json!({"resourceId": id, "changeType": "Ignore"});
            if !only_ids {
                let body = summary(call, *kind, &placed);
                change["before"] = body.clone();
                change["after"] = body;
            }
            changes.push(change);
        }
    }
    Ok(changes)
}
