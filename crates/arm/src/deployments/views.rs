//! What clients are told of deployments.

use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::names::time_text;
use crate::types::import_source::hide_signatures;
use installation::catalog::{OperationRecord, OperationState};

/// The type.
pub const TYPE: &str = "Microsoft.Resources/deployments";

/// A deployment.
pub fn view(record: &OperationRecord) -> Value {
    let name = record.deployment.as_ref().map(|of| of.name.as_str());
    let mut body = common(&record.target, name.unwrap_or_default(), &record.answer);
    let state = match record.state {
        OperationState::Running => "Running",
        ended => ended.as_str(),
    };
    let properties = &mut body["properties"];
    properties["provisioningState"] = json!(state);
    properties["timestamp"] = json!(time_text(record.changed));
    properties["duration"] = json!(duration(record.started.at, record.changed));
    properties["correlationId"] = json!(record.id);
    properties["outputs"] = record.answer["outputs"].clone();
    let made = record.answer["steps"].as_array().into_iter().flatten();
    let made = made.filter(|step| step["error"].is_null());
    properties["outputResources"] = made.map(|step| json!({"id": step["id"]})).collect();
    if record.answer["error"].is_object() {
        properties["error"] = record.answer["error"].clone();
    }
    body["systemData"] = json!({
        "createdAt": time_text(record.started.at),
        "createdBy": record.started.by,
        "createdByType": "Application",
    });
    body
}

/// What a deployment would be.
pub fn validated(id: &str, name: &str, answer: &Value) -> Value {
    let mut body = common(id, name, answer);
    body["properties"]["provisioningState"] = json!("Succeeded");
    body["properties"]["validatedResources"] = answer["planned"].clone();
    body
}

fn common(id: &str, name: &str, answer: &Value) -> Value {
    let mut body = json!({"id": id, "name": name, "type": TYPE, "properties": {}});
    for field in [
        "templateHash",
        "mode",
        "parameters",
        "providers",
        "dependencies",
    ] {
        body["properties"][field] = answer[field].clone();
    }
    if answer["tags"]
        .as_object()
        .is_some_and(|tags| !tags.is_empty())
    {
        body["tags"] = answer["tags"].clone();
    }
    body
}

/// The template as it is kept: without what its secure parameters may be, and without what gives access to a disk's data,
/// which what was kept by earlier versions has.
pub fn exported(record: &OperationRecord) -> Value {
    let mut template = record.request["work"]["request"]["properties"]["template"].clone();
    hide_signatures(&mut template);
    json!({"template": template})
}

/// What was done for each resource, the latest first, as Azure lists it.
pub fn steps(id: &str, record: &OperationRecord) -> Vec<Value> {
    let steps = record.answer["steps"].as_array().into_iter().flatten();
    steps.rev().map(|step| view_of_step(id, step)).collect()
}

fn view_of_step(id: &str, step: &Value) -> Value {
    let operation = step["operationId"].as_str().unwrap_or_default();
    let failed = step["error"].is_object();
    let status = step["status"].as_u64().unwrap_or_default();
    let mut view = json!({
        "id": format!("{id}/operations/{operation}"),
        "operationId": operation,
        "properties": {
            "provisioningOperation": "Create",
            "provisioningState": if failed { "Failed" } else { "Succeeded" },
            "timestamp": step["timestamp"],
            "duration": step["duration"],
            "statusCode": status_name(status),
            "targetResource": {
                "id": step["id"],
                "resourceType": step["resourceType"],
                "resourceName": step["resourceName"],
            },
        },
    });
    if failed {
        let error = &step["error"];
        view["properties"]["statusMessage"] = json!({"status": "Failed", "error": error});
    }
    view
}

/// The name of an HTTP status, as Azure writes it there.
fn status_name(status: u64) -> String {
    let name = match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        412 => "PreconditionFailed",
        429 => "TooManyRequests",
        500 => "InternalServerError",
        503 => "ServiceUnavailable",
        other => return other.to_string(),
    };
    name.into()
}

/// How long something took, as ISO 8601 has it.
pub fn duration(from: OffsetDateTime, to: OffsetDateTime) -> String {
    format!("PT{:.3}S", (to - from).as_seconds_f64().max(0.0))
}
