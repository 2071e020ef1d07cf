//! What is found out of a deployment before anything is made.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::environment::{MAX_ANSWER, context};
use super::run::Deployment;
use super::secrets::Secrets;
use crate::call::Call;
use crate::error::ArmError;
use crate::id::{ArmPath, Typed};
use crate::types::import_source::hide_signatures;
use installation::catalog::LOCATION;
use templates::{Mode, Plan, PlannedResource, Request, parse_request};

/// Reads a request, checks its template, and whether whoever asks may make its resources.
///
/// # Errors
/// What is wrong with it.
pub fn prepare(call: &Call<'_>, group: &str, name: &str) -> Result<Deployment, ArmError> {
    let known = call.catalog().group(group)?;
    let group = known.ok_or_else(|| ArmError::no_group(group))?;
    let request = parse_request(call.raw)?;
    if request.mode == Mode::Complete {
        return Err(ArmError::not_offered(
            "properties.mode",
            "deployments that delete what their template does not have ('Complete')",
        ));
    }
    let now = OffsetDateTime::now_utc();
    let now = now.replace_nanosecond(0).unwrap_or(now);
    let seed = Uuid::new_v4();
    let plan = Plan::new(&request, context(&call.names, &group, name, now, seed))?;
    for resource in plan.resources().filter(|resource| resource.made) {
        check(call, resource)?;
    }
    let secrets = Secrets::new(plan.secrets());
    let mut answer = answer(&request, &plan);
    if answer.to_string().len() > MAX_ANSWER {
        let message = format!(
            "Deployment template validation failed: 'The values of the parameters have more than {MAX_ANSWER} bytes.'."
        );
        return Err(ArmError::new(400, "InvalidTemplate", message));
    }
    for field in ["parameters", "dependencies", "planned"] {
        secrets.hide(&mut answer[field]);
        hide_signatures(&mut answer[field]);
    }
    let mut kept = request.kept();
    let has_signatures = hide_signatures(&mut kept);
    let has_secrets = request.has_secrets() || has_signatures;
    Ok(Deployment {
        kept: json!({
            "request": kept,
            "group": group,
            "name": name,
            "now": now.unix_timestamp(),
            // A secret may be made of it; and without what is not kept the same resources are not made again.
            "seed": (!has_secrets).then_some(seed),
        }),
        plan,
        secrets,
        answer,
    })
}

/// Refuses a resource of a type that there is not, and one that whoever deploys may not make or that is locked.
fn check(call: &Call<'_>, resource: &PlannedResource) -> Result<(), ArmError> {
    let refuse = |status: u16, code: &str, why: String| {
        refused(&resource.id, ArmError::new(status, code, why))
    };
    let path = ArmPath::parse(&resource.id);
    let path = path.map_err(|error| refuse(400, "InvalidResourceId", format!("{error}.")))?;
    let Some(last) = path.typed.last().filter(|last| is_known(call, last)) else {
        let why = format!(
            "The resource type '{}' could not be found for api version '{}'.",
            resource.resource_type, resource.api_version
        );
        return Err(refuse(400, "InvalidResourceType", why));
    };
    let scope = match last
        .provider
        .eq_ignore_ascii_case("Microsoft.Authorization")
    {
        true => ArmPath {
            typed: path.typed[..path.typed.len() - 1].to_vec(),
            ..path.clone()
        }
        .to_string(),
        false => resource.id.clone(),
    };
    let action = format!("{}/write", last.full_type());
    call.require(&action, &scope)
        .map_err(|error| refused(&resource.id, error))
}

/// The refusal of a deployment because of one of its resources.
pub fn refused(id: &str, error: ArmError) -> ArmError {
    let ArmError {
        status,
        code,
        message,
        ..
    } = error;
    ArmError {
        target: Some(id.into()),
        detail: Some(Box::new((code, message.clone()))),
        ..ArmError::new(
            status,
            "InvalidTemplateDeployment",
            format!(
                "The template deployment failed with error: 'The resource with id: '{id}' failed validation with \
                 message: '{message}'.'."
            ),
        )
    }
}

fn is_known(call: &Call<'_>, typed: &Typed) -> bool {
    let first = typed.types.first().map_or("", String::as_str);
    match typed.types.len() {
        1 => {
            call.type_of(&typed.provider, first).is_some()
                || typed.is("Microsoft.Authorization", &["roleAssignments"])
                || typed.is("Microsoft.Authorization", &["locks"])
        }
        _ => typed.is("Microsoft.KeyVault", &["vaults", "keys"]),
    }
}

/// What is known of a deployment before it begins.
fn answer(request: &Request, plan: &Plan) -> Value {
    let resources: Vec<&PlannedResource> = plan.resources().filter(|it| it.made).collect();
    let reference = |resource: &PlannedResource| {
        json!({
            "id": resource.id,
            "resourceType": resource.resource_type,
            "resourceName": resource.name,
        })
    };
    let mut dependencies = Vec::new();
    for resource in resources.iter().filter(|it| !it.depends_on.is_empty()) {
        let on = plan
            .resources()
            .filter(|other| resource.depends_on.contains(&other.id));
        let mut dependency = reference(resource);
        dependency["dependsOn"] = on.map(reference).collect();
        dependencies.push(dependency);
    }
    json!({
        "tags": request.tags,
        "templateHash": request.template_hash(),
        "mode": request.mode.name(),
        "parameters": plan.parameters(),
        "providers": providers(&resources),
        "dependencies": dependencies,
        "planned": resources.iter().map(|it| json!({"id": it.id})).collect::<Vec<_>>(),
        "outputs": Map::new(),
        "steps": [],
    })
}

fn providers(resources: &[&PlannedResource]) -> Value {
    let mut spaces: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for resource in resources {
        if let Some((space, kind)) = resource.resource_type.split_once('/') {
            let kinds = spaces.entry(space).or_default();
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
    }
    let kind = |kind: &&str| json!({"resourceType": kind, "locations": [LOCATION]});
    let space = |(space, kinds): (&&str, &Vec<&str>)| {
        let kinds: Vec<Value> = kinds.iter().map(kind).collect();
        json!({"namespace": space, "resourceTypes": kinds})
    };
    spaces.iter().map(space).collect()
}
