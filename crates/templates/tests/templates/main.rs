//! Templates through what the crate offers: what `az` sends goes in, resources and outputs come out.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod az;
mod functions;
mod limits;
mod loops;
mod parameters;
mod properties;
mod references;
mod resources;
mod syntax;

use serde_json::{Map, Value, json};
use templates::{Context, Plan, Resource, ResourceGroup, Step, TemplateError, parse_request};
use time::macros::datetime;
use uuid::Uuid;

const SUBSCRIPTION: &str = "00000000-0000-0000-0000-000000000001";
const GROUP: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/rg1";

fn context() -> Context {
    let mut tags = Map::new();
    tags.insert("owner".to_owned(), "ada".into());
    Context {
        subscription_id: SUBSCRIPTION.to_owned(),
        subscription_name: "sealdisk".to_owned(),
        tenant_id: "00000000-0000-0000-0000-000000000002".to_owned(),
        resource_group: ResourceGroup {
            name: "rg1".to_owned(),
            location: "local".to_owned(),
            tags,
        },
        deployment_name: "des".to_owned(),
        environment: json!({"name": "Sealdisk"}),
        now: datetime!(2026-11-28 11:41:20 UTC),
        guid_seed: Uuid::from_u128(7),
    }
}

/// A plan for a template and values of parameters.
fn plan_with(template: &Value, parameters: &Value) -> Result<Plan, TemplateError> {
    let values = parameters.as_object().cloned().unwrap_or_default();
    let values: Map<String, Value> = values
        .into_iter()
        .map(|(name, value)| (name, json!({ "value": value })))
        .collect();
    let properties = json!({"mode": "Incremental", "template": template, "parameters": values});
    let body = json!({ "properties": properties }).to_string();
    Plan::new(&parse_request(body.as_bytes())?, context())
}

fn plan(template: &Value) -> Result<Plan, TemplateError> {
    plan_with(template, &json!({}))
}

/// Goes through a plan; resources become what they are made of, with an id, and others do not exist.
fn run(plan: &mut Plan) -> Result<(Vec<Resource>, Map<String, Value>), TemplateError> {
    let mut made = Vec::new();
    loop {
        match plan.next_step()? {
            Step::Read { .. } => plan.found(None)?,
            Step::Create(resource) => {
                let mut state = resource.body.clone();
                state["id"] = resource.id.clone().into();
                made.push(resource);
                plan.made(state)?;
            }
            Step::Done(outputs) => return Ok((made, outputs)),
        }
    }
}

/// The bodies and names of all resources of a template.
fn bodies(template: &Value) -> Vec<(String, Value)> {
    let (made, _) = run(&mut plan(template).unwrap()).unwrap();
    made.into_iter().map(|it| (it.name, it.body)).collect()
}

/// The message of a refusal, whose code must be `InvalidTemplate`.
fn refusal(template: &Value) -> String {
    let error = plan(template).and_then(|mut plan| run(&mut plan).map(|_| ()));
    let error = error.unwrap_err();
    assert_eq!(error.azure_code(), "InvalidTemplate", "{error}");
    error.to_string()
}

/// The value of one expression, as an output.
fn value(expression: &str) -> Result<Value, TemplateError> {
    // An output says its type, so the value is put where any will do.
    let outputs = json!({"it": {"type": "array", "value": [expression]}});
    let mut plan = plan(&json!({"resources": [], "outputs": outputs}))?;
    let (_, outputs) = run(&mut plan)?;
    Ok(outputs["it"]["value"][0].clone())
}

/// A resource of a made-up type.
fn resource(name: &str, properties: Value) -> Value {
    json!({"type": "Test.Things/things", "apiVersion": "1", "name": name, "properties": properties})
}
