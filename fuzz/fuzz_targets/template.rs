//! A request to deploy a template, as whoever may deploy can send it: it is a plan or a refusal, in bounded time and
//! memory, and the same twice; resources come in order, and messages can be printed.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sealdisk_fuzz::{Edit, edited};
use serde_json::{Map, Value, json};
use templates::{Context, Plan, ResourceGroup, Step, TemplateError, parse_request};
use time::OffsetDateTime;
use uuid::Uuid;

/// A bit of everything that a template may have.
const REQUEST: &[u8] = br#"{"properties": {"parameters": {"names": {"value": ["a", "b"]}}, "mode": "Incremental", template:{
  // A comment.
  "parameters": {
    "names": {"type": "array", "minLength": 1, "allowedValues": ["a", "b", "c"]},
    "place": {"type": "string", "defaultValue": "[resourceGroup().location]"},
    "id": {"type": "securestring", "defaultValue": "[newGuid()]"},
  },
  "functions": [{"namespace": "n", "members": {"f": {
    "parameters": [{"name": "x", "type": "string"}], "output": {"type": "string", "value": "[toUpper(parameters('x'))]"}}}}],
  "variables": {
    "copy": [{"name": "all", "count": "[length(parameters('names'))]", "input": "[n.f(parameters('names')[copyIndex('all')])]"}],
    "one": "[union(createObject('a', 1), json('{\"b\": [2, 3]}'))]",
  },
  "resources": [
    {"type": "A.B/c", "apiVersion": "1", "name": "[format('{0}-{1:D2}', variables('all')[copyIndex()], copyIndex(1))]",
     "copy": {"name": "loop", "count": 2}, "condition": "[not(empty(variables('one').b))]", "dependsOn": ["x"],
     "properties": {"y": "[reference('x', '1', 'full').id]", "z": "[map(range(0, 3), lambda('i', mul(lambdaVariables('i'), 2)))]"}},
    {"type": "A.B/c", "apiVersion": "1", "name": "x", "location": "[parameters('place')]",
     "resources": [{"type": "d", "apiVersion": "1", "name": "[guid('x')]"}]},
  ],
  "outputs": {"o": {"type": "string", "value": "[reference('/subscriptions/s/providers/A.B/c', '1').p]"},
    "l": {"type": "array", "copy": {"count": 3, "input": "[uniqueString(string(copyIndex()))]"}}}
}}}"#;

/// What expressions are made of.
const PIECES: [&str; 48] = [
    "(",
    ")",
    ",",
    "'",
    "'a'",
    "[",
    "]",
    ".",
    " ",
    "1",
    "-7",
    "concat",
    "format",
    "'{0,9:D4}'",
    "replace",
    "split",
    "join",
    "substring",
    "padLeft",
    "range",
    "union",
    "intersection",
    "createArray",
    "createObject",
    "json",
    "'[{}]'",
    "items",
    "map",
    "filter",
    "reduce",
    "lambda",
    "lambdaVariables",
    "variables",
    "'v'",
    "parameters",
    "reference",
    "resourceId",
    "'A.B/c'",
    "if",
    "true()",
    "uri",
    "dateTimeAdd",
    "'P1Y'",
    "'2020-01-01'",
    "mul",
    "mod",
    "tryGet",
    "guid",
];

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    Raw(&'a [u8]),
    Edited(Vec<Edit>),
    /// The value of a variable, of a property and of an output.
    Expressions([Vec<u8>; 3]),
}

fn expression(pieces: &[u8]) -> String {
    let pieces = pieces
        .iter()
        .map(|at| PIECES[usize::from(*at) % PIECES.len()]);
    format!("[{}]", pieces.collect::<String>())
}

fn body(input: &Input<'_>) -> Vec<u8> {
    match input {
        Input::Raw(bytes) => bytes.to_vec(),
        Input::Edited(edits) => edited(REQUEST, edits),
        Input::Expressions(all) => {
            let [variable, property, output] = all.each_ref().map(|pieces| expression(pieces));
            let resource = json!({"type": "A.B/c", "apiVersion": "1", "name": "a", "properties": {"p": property}});
            let template = json!({
                "variables": {"v": variable},
                "resources": [resource],
                "outputs": {"o": {"type": "array", "value": [output]}},
            });
            json!({"properties": {"template": template}})
                .to_string()
                .into_bytes()
        }
    }
}

fn context() -> Context {
    Context {
        subscription_id: Uuid::from_u128(1).to_string(),
        subscription_name: "s".to_owned(),
        tenant_id: Uuid::from_u128(2).to_string(),
        resource_group: ResourceGroup {
            name: "g".to_owned(),
            location: "local".to_owned(),
            tags: Map::new(),
        },
        deployment_name: "d".to_owned(),
        environment: json!({}),
        now: OffsetDateTime::UNIX_EPOCH,
        guid_seed: Uuid::from_u128(3),
    }
}

/// Everything that was made, and the outputs.
fn deploy(body: &[u8]) -> Result<(Vec<String>, Map<String, Value>), TemplateError> {
    let mut plan = Plan::new(&parse_request(body)?, context())?;
    let mut made = Vec::new();
    let mut known: Vec<String> = Vec::new();
    for resource in plan.resources() {
        for on in &resource.depends_on {
            assert!(known.contains(on), "{} comes before {on}", resource.id);
        }
        known.push(resource.id.clone());
    }
    loop {
        match plan.next_step()? {
            Step::Read { id, .. } => {
                plan.found(Some(json!({"id": id, "properties": {"p": "q"}})))?
            }
            Step::Create(resource) => {
                made.push(resource.id.clone());
                plan.made(json!({"id": resource.id, "properties": resource.body["properties"]}))?;
            }
            Step::Done(outputs) => return Ok((made, outputs)),
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    let body = body(&input);
    let outcome = deploy(&body);
    if let Err(error) = &outcome {
        assert!(!error.to_string().contains(char::is_control), "{error:?}");
    }
    assert_eq!(outcome, deploy(&body));
});
