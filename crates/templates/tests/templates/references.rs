//! What `reference` gives, when, and what the caller is asked for.

use serde_json::{Value, json};
use templates::{Step, TemplateError};

use crate::{GROUP, plan, refusal, resource, run};

#[test]
fn a_resource_is_evaluated_when_those_before_it_are_made() {
    let template = json!({"resources": [
        resource("a", json!({"x": "[reference(resourceId('Test.Things/things', 'b')).made]"})),
        resource("b", json!({})),
    ]});
    let mut plan = plan(&template).unwrap();
    let order: Vec<_> = plan.resources().map(|it| it.name.clone()).collect();
    assert_eq!(order, ["b", "a"]);
    assert_eq!(
        plan.resources().nth(1).unwrap().depends_on,
        [format!("{GROUP}/providers/Test.Things/things/b")]
    );
    let Step::Create(first) = plan.next_step().unwrap() else {
        panic!();
    };
    assert_eq!(first.name, "b");
    plan.made(json!({"properties": {"made": "yes"}})).unwrap();
    let Step::Create(second) = plan.next_step().unwrap() else {
        panic!();
    };
    assert_eq!(second.body["properties"]["x"], "yes");
}

#[test]
fn resources_outside_of_the_template_are_asked_for_once() {
    let id = "/subscriptions/S/resourceGroups/g/providers/Microsoft.KeyVault/vaults/kv";
    let template = json!({
        "resources": [resource("a", json!({
            "uri": format!("[reference('{id}', '2023-07-01').vaultUri]"),
            "again": format!("[reference('{}', '2023-07-01', 'Full').location]", id.to_lowercase()),
        }))],
        "outputs": {"o": {"type": "string", "value": format!("[reference('{id}', '1', 'Full').resourceGroupName]")}},
    });
    let mut plan = plan(&template).unwrap();
    let asked = Step::Read {
        id: id.to_owned(),
        api_version: "2023-07-01".to_owned(),
    };
    assert_eq!(plan.next_step(), Ok(asked.clone()));
    assert_eq!(plan.next_step(), Ok(asked));
    // An answer to something else changes nothing.
    plan.made(json!({})).unwrap();
    plan.found(Some(
        json!({"location": "local", "properties": {"vaultUri": "u"}}),
    ))
    .unwrap();
    plan.found(None).unwrap();
    let (made, outputs) = run(&mut plan).unwrap();
    assert_eq!(
        made[0].body["properties"],
        json!({"uri": "u", "again": "local"})
    );
    assert_eq!(outputs["o"]["value"], "g");
}

#[test]
fn a_resource_that_does_not_exist_is_named() {
    let template = json!({"outputs": {"o": {
        "type": "object", "value": "[reference('/subscriptions/s/providers/A.B/c', '1')]",
    }}});
    let mut plan = plan(&template).unwrap();
    let error = run(&mut plan).unwrap_err();
    assert_eq!(error.azure_code(), "ResourceNotFound");
    assert!(
        error
            .to_string()
            .contains("'/subscriptions/s/providers/A.B/c' was not found")
    );
    // It is said again, if one goes on.
    assert_eq!(plan.next_step().unwrap_err(), error);
}

#[test]
fn what_cannot_be_evaluated_is_told_with_the_resource() {
    let template = json!({"resources": [resource("a", json!({"x": "[createObject('b', 1).c]"}))]});
    let message = refusal(&template);
    assert!(
        message.starts_with(&format!(
            "Unable to process template language expressions for resource '{GROUP}/providers/Test.Things/things/a' at line '1' and column '"
        )),
        "{message}"
    );
    assert!(message.ends_with(
        "'The language expression property 'c' doesn't exist, available properties are 'b'.'"
    ));
    for (expression, said) in [
        (
            "[reference('nowhere')]",
            "could not find template resource or resource copy with this name",
        ),
        (
            "[reference('/subscriptions/s/providers/A.B/c')]",
            "the API version must be given",
        ),
        ("[reference(concat(1))]", "could not find template resource"),
        ("[createArray(1)[7]]", "array index '7' is out of bounds"),
        (
            "[createArray(1).name]",
            "property 'name' can't be evaluated",
        ),
        ("[null().name]", "can't be evaluated"),
    ] {
        let message = refusal(&json!({"resources": [resource("a", json!({ "x": expression }))]}));
        assert!(message.contains(said), "{message}");
    }
}

#[test]
fn a_reference_that_nobody_could_foresee_asks_for_a_dependency() {
    let template = json!({"resources": [
        resource("a", json!({"x": "[map(createArray('b'), lambda('n', reference(lambdaVariables('n'))))]"})),
        resource("b", json!({})),
    ]});
    let message = refusal(&template);
    assert!(
        message.contains("is referred to before it is made: add it to dependsOn"),
        "{message}"
    );
}

#[test]
fn an_output_of_another_type_is_refused() {
    let output = |kind: &str, value: Value| {
        let template = json!({"outputs": {"o": {"type": kind, "value": value}}});
        run(&mut plan(&template).unwrap()).map(|(_, outputs)| outputs["o"].clone())
    };
    assert_eq!(
        output("int", json!("[add(1, 1)]")),
        Ok(json!({"type": "Int", "value": 2}))
    );
    let error = output("int", json!("two")).unwrap_err();
    assert!(matches!(
        error,
        TemplateError::DeploymentOutputEvaluationFailed(_)
    ));
    assert!(
        error
            .to_string()
            .contains("expected a value of type 'Integer'"),
        "{error}"
    );
}

#[test]
fn a_branch_that_is_not_taken_asks_for_nothing() {
    let template = json!({"resources": [resource("a", json!({
        "x": "[if(false(), reference('/subscriptions/s/providers/A.B/c', '1'), 'no')]",
    }))]});
    let (made, _) = run(&mut plan(&template).unwrap()).unwrap();
    assert_eq!(made[0].body["properties"]["x"], "no");
}
