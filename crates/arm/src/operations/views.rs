//! What clients are told of operations.

use serde_json::{Value, json};
use server::FrontReply;
use uuid::Uuid;

use super::asking::Worker;
use super::failure::failure;
use crate::call::Call;
use crate::error::ArmError;
use crate::names::time_text;
use crate::reply::{done, item};
use installation::catalog::{OperationRecord, OperationState};

/// 202: the operation goes on, and at these URLs it can be asked for.
pub fn accepted(call: &Call<'_>, record: &OperationRecord, body: Option<Value>) -> FrontReply {
    let mut headers = watched(call, &format!("operationstatuses/{}", record.id));
    headers.push((
        "location",
        url(call, &format!("operationresults/{}", record.id)),
    ));
    FrontReply {
        status: 202,
        body,
        headers,
        retry_after: Some(1),
        ..FrontReply::default()
    }
}

/// An answer that is complete but for the operation, which goes on: where it can be asked for.
pub fn watching(call: &Call<'_>, id: Uuid, mut reply: FrontReply) -> FrontReply {
    let below = format!("operationstatuses/{id}");
    reply.headers.extend(watched(call, &below));
    reply.retry_after = Some(1);
    reply
}

/// The header with the URL, below the subscription, at which clients ask for an operation.
pub fn watched(call: &Call<'_>, below: &str) -> Vec<(&'static str, String)> {
    vec![("azure-asyncoperation", url(call, below))]
}

fn url(call: &Call<'_>, below: &str) -> String {
    let (base, subscription) = (&call.names.base, call.names.subscription_id());
    let version = &call.query.api_version;
    format!("{base}{subscription}/{below}?api-version={version}")
}

/// `GET …/operationstatuses/{id}`
///
/// # Errors
/// 404, also for an operation of others.
pub fn status(call: &Call<'_>, id: &str) -> Result<FrontReply, ArmError> {
    let record = find(call, id)?;
    let below = format!("operationstatuses/{}", record.id);
    Ok(status_of(call, &record, &below))
}

/// The state of an operation that is asked for at a URL below the subscription.
pub fn status_of(call: &Call<'_>, record: &OperationRecord, below: &str) -> FrontReply {
    let mut body = json!({
        "id": format!("{}/{below}", call.names.subscription_id()),
        "name": record.id,
        "startTime": time_text(record.started.at),
        "status": match record.state {
            OperationState::Running => "InProgress",
            ended => ended.as_str(),
        },
    });
    if record.state != OperationState::Running {
        body["endTime"] = json!(time_text(record.changed));
    }
    if record.answer["error"].is_object() {
        body["error"] = record.answer["error"].clone();
    }
    FrontReply {
        retry_after: (record.state == OperationState::Running).then_some(1),
        ..item(body)
    }
}

/// `GET …/operationresults/{id}`: what the request would have been answered with.
///
/// # Errors
/// 404; that of the operation.
pub fn result(call: &Call<'_>, id: &str) -> Result<FrontReply, ArmError> {
    let record = find(call, id)?;
    match record.state {
        OperationState::Running => Ok(accepted(call, &record, None)),
        OperationState::Succeeded if record.answer["deleted"] == true => Ok(done(200)),
        OperationState::Succeeded => {
            let asker = Worker::of_call(call);
            asker.ask("GET", &record.target, &call.query.api_version, Value::Null)
        }
        OperationState::Failed | OperationState::Canceled => Err(failure(&record)),
    }
}

/// An operation that whoever asks has begun, or whose resource they may read.
fn find(call: &Call<'_>, id: &str) -> Result<OperationRecord, ArmError> {
    let known = match Uuid::try_parse(id) {
        Ok(id) => call.catalog().operation(id)?,
        Err(_) => None,
    };
    let action = "Microsoft.Resources/subscriptions/operationresults/read";
    let mine = |record: &OperationRecord| record.started.by == call.principal.object_id;
    let subscription = call.names.subscription_id();
    known
        .filter(|record| record.deployment.is_none())
        .filter(|record| mine(record) || call.may(action, &subscription))
        .ok_or_else(|| {
            let id: String = id.chars().take(80).collect();
            let message = format!("The operation '{id}' could not be found.");
            ArmError::new(404, "OperationNotFound", message)
        })
}
