//! A deployment, from its first resource to its outputs.

use serde_json::{Value, json};
use server::FrontReply;
use time::OffsetDateTime;
use uuid::Uuid;

use super::environment::{MAX_ANSWER, context};
use super::secrets::Secrets;
use super::shown::told;
use super::views::duration;
use crate::call::{Call, Work};
use crate::error::{ArmError, text};
use crate::names::Names;
use crate::operations::{Worker, cut_off};
use crate::types::import_source::hide_signatures;
use installation::catalog::{GroupRecord, OperationRecord, OperationState};
use templates::{Plan, Resource, Step, parse_request};

/// A deployment that is checked.
pub struct Deployment {
    /// What is to be done.
    pub plan: Plan,
    /// What is told to nobody.
    pub secrets: Secrets,
    /// What the catalog keeps, so that it can be gone on with and exported.
    pub kept: Value,
    /// What is told of it before it begins.
    pub answer: Value,
}

impl Work for Deployment {
    fn kept(&self) -> Value {
        self.kept.clone()
    }

    /// Makes one resource after the other. The first that cannot be made is the end; those before it stay.
    fn perform(
        mut self: Box<Self>,
        call: &Call<'_>,
        record: &mut OperationRecord,
    ) -> Result<OperationState, ArmError> {
        let (catalog, worker) = (call.catalog(), &Worker::of_call(call));
        loop {
            if catalog.is_operation_cancelled(record.id)? {
                let why = "The deployment was cancelled by a client.";
                record.answer["error"] = json!({"code": "DeploymentCanceled", "message": why});
                return Ok(OperationState::Canceled);
            }
            let step = self.plan.next_step();
            match step.map_err(|error| self.failed(record, error.into()))? {
                Step::Read { id, api_version } => {
                    let found = found(worker.ask("GET", &id, &api_version, Value::Null));
                    let found = found.map_err(|error| self.failed(record, error))?;
                    let noted = self.plan.found(found);
                    noted.map_err(|error| self.failed(record, error.into()))?;
                }
                Step::Create(resource) => {
                    let made = self.make(worker, record, &resource)?;
                    let noted = self.plan.made(made);
                    noted.map_err(|error| self.failed(record, error.into()))?;
                    catalog.put_operation(record)?;
                }
                Step::Done(outputs) => {
                    let mut outputs = Value::Object(outputs);
                    self.secrets.hide(&mut outputs);
                    hide_signatures(&mut outputs);
                    if outputs.to_string().len() > MAX_ANSWER {
                        let message = format!("The outputs have more than {MAX_ANSWER} bytes.");
                        let code = "DeploymentOutputEvaluationFailed";
                        return Err(self.failed(record, ArmError::new(400, code, message)));
                    }
                    record.answer["outputs"] = outputs;
                    return Ok(OperationState::Succeeded);
                }
            }
        }
    }
}

impl Deployment {
    /// One that was cut off.
    ///
    /// # Errors
    /// When it had values of secure parameters or signatures of URLs, which nobody has any more; when what is kept is
    /// damaged.
    pub fn again(record: &OperationRecord, names: &Names) -> Result<Self, ArmError> {
        let kept = record.request["work"].clone();
        let Some(seed) = text(&kept, "/seed") else {
            return Err(ArmError {
                message: "The server ended while the deployment went on, and the values of its secure parameters, and \
                          the signatures of URLs in it, are kept nowhere. Deploy it again."
                    .into(),
                ..cut_off()
            });
        };
        let damaged =
            || ArmError::internal(format!("what is kept of {} is damaged", record.target));
        let group: GroupRecord =
            serde_json::from_value(kept["group"].clone()).map_err(|_| damaged())?;
        let seed = Uuid::try_parse(seed).map_err(|_| damaged())?;
        let now = kept["now"].as_i64();
        let now = now.and_then(|now| OffsetDateTime::from_unix_timestamp(now).ok());
        let name = text(&kept, "/name").ok_or_else(damaged)?;
        let context = context(names, &group, name, now.ok_or_else(damaged)?, seed);
        let request = parse_request(kept["request"].to_string().as_bytes())?;
        Ok(Self {
            plan: Plan::new(&request, context)?,
            secrets: Secrets::new(Vec::new()),
            answer: record.answer.clone(),
            kept,
        })
    }

    /// Makes a resource: as it is then.
    fn make(
        &self,
        worker: &Worker<'_>,
        record: &mut OperationRecord,
        resource: &Resource,
    ) -> Result<Value, ArmError> {
        let (id, version) = (&resource.id, &resource.api_version);
        if is_made(record, id)
            && let Some(body) = found(worker.ask("GET", id, version, Value::Null))
                .map_err(|error| self.failed(record, error))?
        {
            return Ok(body);
        }
        let begun = OffsetDateTime::now_utc();
        let reply = worker.ask("PUT", id, version, resource.body.clone());
        let reply = reply.and_then(|reply| worker.settled(reply, id, version));
        let now = OffsetDateTime::now_utc();
        let mut step = json!({
            "operationId": Uuid::new_v4().simple().to_string().to_uppercase(),
            "timestamp": crate::names::time_text(now),
            "duration": duration(begun, now),
            "id": id,
            "resourceType": resource.resource_type,
            "resourceName": resource.name,
        });
        let made = match reply {
            Ok(FrontReply { status, body, .. }) => {
                step["status"] = json!(status);
                Ok(body.unwrap_or(Value::Null))
            }
            Err(error) => {
                // What was made with a secret is told to nobody, however it was made.
                let error = told(resource, error);
                step["status"] = json!(error.status);
                step["error"] = error.view();
                Err(error)
            }
        };
        for field in ["id", "resourceName", "error"] {
            if let Some(value) = step.get_mut(field) {
                self.secrets.hide(value);
                hide_signatures(value);
            }
        }
        if let Some(steps) = record.answer["steps"].as_array_mut() {
            steps.push(step);
        }
        made.map_err(|error| {
            let target = Some(resource.id.clone());
            self.failed(record, ArmError { target, ..error })
        })
    }

    /// A deployment that has ended early, in Azure's words, with the reason beneath.
    fn failed(&self, record: &mut OperationRecord, beneath: ArmError) -> ArmError {
        let error = ArmError::new(
            409,
            "DeploymentFailed",
            "At least one resource deployment operation failed. Please list deployment operations for details. Please \
             see https://aka.ms/arm-deployment-operations for usage details.",
        );
        let mut view = error.view();
        view["target"] = json!(record.target);
        view["details"] = json!([beneath.view()]);
        self.secrets.hide(&mut view["details"]);
        hide_signatures(&mut view["details"]);
        record.answer["error"] = view;
        error
    }
}

/// Whether a step of before has made a resource.
fn is_made(record: &OperationRecord, id: &str) -> bool {
    let steps = record.answer["steps"].as_array();
    let is_it = |step: &Value| {
        step["error"].is_null()
            && step["id"]
                .as_str()
                .is_some_and(|made| made.eq_ignore_ascii_case(id))
    };
    steps.is_some_and(|steps| steps.iter().any(is_it))
}

/// What a GET has found; nothing where it says that there is nothing.
pub fn found(reply: Result<FrontReply, ArmError>) -> Result<Option<Value>, ArmError> {
    match reply {
        Ok(reply) => Ok(reply.body),
        Err(error) if error.status == 404 => Ok(None),
        Err(error) => Err(error),
    }
}
