//! Names, conditions, dependencies and their order.

use serde_json::{Value, json};

use crate::{GROUP, bodies, plan, refusal, resource, run};

fn depends(name: &str, on: Value) -> Value {
    let mut resource = resource(name, json!({}));
    resource["dependsOn"] = on;
    resource
}

fn names(template: &Value) -> Vec<String> {
    bodies(template).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn dependencies_are_named_in_many_ways() {
    for on in [
        json!(["b"]),
        json!(["B"]),
        json!(["[resourceId('Test.Things/things', 'b')]"]),
        json!(["[resourceId('test.things/THINGS', 'B')]"]),
        json!(["Test.Things/things/b"]),
        json!("[createArray('b')]"),
    ] {
        let template = json!({"resources": [depends("a", on.clone()), resource("b", json!({}))]});
        assert_eq!(names(&template), ["b", "a"], "{on}");
    }
    let template = json!({"resources": [depends("a", json!(["c"]))]});
    assert!(refusal(&template).contains("The resource 'c' is not defined in the template."));
}

#[test]
fn a_circle_is_refused_with_all_that_are_in_it() {
    let template = json!({"resources": [
        depends("a", json!(["b"])), depends("b", json!(["c"])), depends("c", json!(["a"])), resource("d", json!({})),
    ]});
    assert_eq!(
        refusal(&template),
        format!(
            "Deployment template validation failed: 'Circular dependency detected on resource: \
             '{GROUP}/providers/Test.Things/things/a' (Test.Things/things/a -> Test.Things/things/b -> \
             Test.Things/things/c -> Test.Things/things/a). Please see https://aka.ms/arm-syntax-resources \
             for usage details.'."
        )
    );
    // A reference is a dependency, too.
    let template = json!({"resources": [
        depends("a", json!(["b"])),
        resource("b", json!({"x": "[reference('a').y]"})),
    ]});
    assert!(refusal(&template).contains("Circular dependency detected"));
    let template = json!({"resources": [resource("a", json!({"x": "[reference('a').y]"}))]});
    assert!(refusal(&template).contains("The template resource 'a' cannot reference itself."));
}

#[test]
fn a_resource_whose_condition_does_not_hold_is_not_made() {
    let mut never = resource("never", json!({}));
    never["condition"] = json!("[equals(1, 2)]");
    let mut always = depends("always", json!(["never"]));
    always["condition"] = json!(true);
    let template = json!({"resources": [never.clone(), always]});
    assert_eq!(names(&template), ["always"]);
    let plan = plan(&template).unwrap();
    let made: Vec<_> = plan.resources().map(|it| it.made).collect();
    assert_eq!(made, [false, true]);
    never["condition"] = json!("yes");
    let message = refusal(&json!({"resources": [never]}));
    assert!(message.contains("is no boolean"), "{message}");
}

#[test]
fn children_have_the_names_of_their_parents() {
    let template = json!({"resources": [{
        "type": "Microsoft.KeyVault/vaults", "apiVersion": "1", "name": "kv",
        "resources": [{
            "type": "accessPolicies", "apiVersion": "1", "name": "add", "properties": {"a": 1},
        }],
    }]});
    let (made, _) = run(&mut plan(&template).unwrap()).unwrap();
    assert_eq!(
        made[0].id,
        format!("{GROUP}/providers/Microsoft.KeyVault/vaults/kv")
    );
    assert_eq!(made[1].name, "kv/add");
    assert_eq!(
        made[1].resource_type,
        "Microsoft.KeyVault/vaults/accessPolicies"
    );
    assert_eq!(made[1].id, format!("{}/accessPolicies/add", made[0].id));
}

#[test]
fn extensions_lie_in_the_scope_of_another_resource() {
    let template = json!({"resources": [
        {
            "type": "Microsoft.Authorization/roleAssignments", "apiVersion": "1", "name": "g",
            "scope": "[resourceId('Microsoft.KeyVault/vaults', 'kv')]",
        },
        {
            "type": "Microsoft.Authorization/locks", "apiVersion": "1", "name": "l",
            "scope": "Microsoft.KeyVault/vaults/kv",
        },
        {
            "type": "Microsoft.KeyVault/vaults/providers/roleAssignments", "apiVersion": "1",
            "name": "kv/Microsoft.Authorization/h",
        },
    ]});
    let (made, _) = run(&mut plan(&template).unwrap()).unwrap();
    let vault = format!("{GROUP}/providers/Microsoft.KeyVault/vaults/kv");
    let extension = |rest: &str| format!("{vault}/providers/Microsoft.Authorization/{rest}");
    assert_eq!(made[0].id, extension("roleAssignments/g"));
    assert_eq!(made[1].id, extension("locks/l"));
    assert_eq!(made[2].id, extension("roleAssignments/h"));
}

#[test]
fn what_a_resource_must_have_is_asked_for() {
    for (resource, said) in [
        (
            json!({"type": "A.B/c", "apiVersion": "1"}),
            "The name property cannot be null or empty",
        ),
        (
            json!({"type": "A.B/c", "name": "n"}),
            "The apiVersion property cannot be null or empty",
        ),
        (
            json!({"name": "n", "apiVersion": "1"}),
            "The type property cannot be null or empty",
        ),
        (
            json!({"type": "A.B/c", "apiVersion": "1", "name": "a/b"}),
            "incorrect segment lengths for the type 'A.B/c'",
        ),
        (
            json!({"type": "A.B/c", "apiVersion": "1", "name": "[concat('')]"}),
            "a string that is not empty",
        ),
        (
            json!({"type": "A.B/c", "apiVersion": "1", "name": "a//b"}),
            "an empty segment",
        ),
        (
            json!({"type": "A.B/c", "apiVersion": "1", "name": "a", "dependsOn": [1]}),
            "is no string",
        ),
        (json!("text"), "cannot be null or empty"),
    ] {
        let message = refusal(&json!({ "resources": [resource] }));
        assert!(message.contains(said), "{message}");
    }
    let twice = json!({"resources": [resource("a", json!({})), resource("A", json!({}))]});
    assert!(refusal(&twice).contains("is defined multiple times in a template"));
    assert!(refusal(&json!({"resources": 1})).contains("neither an array nor a JSON object"));
    assert!(refusal(&json!({"variables": []})).contains("is no JSON object"));
}

#[test]
fn symbolic_names_are_names() {
    let mut looped = resource(
        "[format('l{0}', copyIndex())]",
        json!({"n": "[copyIndex()]"}),
    );
    looped["copy"] = json!({"name": "many", "count": 2});
    let mut vault = resource("kv", json!({}));
    vault["existing"] = json!(true);
    let mut last = resource(
        "last",
        json!({
            "one": "[reference('many[1]').n]",
            "all": "[map(references('many'), lambda('r', lambdaVariables('r').n))]",
        }),
    );
    last["dependsOn"] = json!(["many", "vault"]);
    let template = json!({"languageVersion": "2.0", "resources": {
        "end": last, "many": looped, "vault": vault,
    }});
    let made = bodies(&template);
    assert_eq!(made.len(), 3);
    assert_eq!(made[2].1["properties"], json!({"one": 1, "all": [0, 1]}));
}

#[test]
fn names_of_properties_may_be_expressions() {
    let template = json!({"resources": [{
        "type": "A.B/c", "apiVersion": "1", "name": "n", "comments": "none", "metadata": {"a": 1},
        "identity": {"type": "UserAssigned", "userAssignedIdentities": {
            "[resourceId('Microsoft.ManagedIdentity/userAssignedIdentities', 'i')]": {},
        }},
        "tags": {"[toLower('A')]": "b"},
    }]});
    let id = format!("{GROUP}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i");
    assert_eq!(
        bodies(&template)[0].1,
        json!({
            "identity": {"type": "UserAssigned", "userAssignedIdentities": {id: {}}},
            "tags": {"a": "b"},
        })
    );
}

#[test]
fn a_resource_is_made_where_its_template_is_deployed() {
    for name in ["resourceGroup", "RESOURCEGROUP", "subscriptionId"] {
        let mut elsewhere = resource("n", json!({}));
        elsewhere[name] = json!("other");
        let message = refusal(&json!({"resources": [elsewhere]}));
        assert!(
            message.contains("for resources of type 'Microsoft.Resources/deployments' only"),
            "{message}"
        );
    }
}
