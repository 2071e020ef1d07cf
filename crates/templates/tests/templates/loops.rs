//! `copy` of resources, properties, variables and outputs.

use serde_json::json;

use crate::{bodies, plan, refusal, resource, run};

#[test]
fn a_resource_is_made_for_each_index() {
    let mut looped = resource("[concat('d', copyIndex(1))]", json!({"n": "[copyIndex()]"}));
    looped["copy"] = json!({"name": "disks", "count": "[add(1, 1)]", "mode": "serial"});
    let mut last = resource("last", json!({}));
    last["dependsOn"] = json!(["disks"]);
    let made = bodies(&json!({"resources": [last, looped]}));
    assert_eq!(
        made,
        [
            ("d1".to_owned(), json!({"properties": {"n": 0}})),
            ("d2".to_owned(), json!({"properties": {"n": 1}})),
            ("last".to_owned(), json!({"properties": {}})),
        ]
    );
}

#[test]
fn no_resource_is_made_of_a_count_of_zero() {
    let mut looped = resource("[concat('d', copyIndex())]", json!({}));
    looped["copy"] = json!({"name": "disks", "count": 0});
    assert!(bodies(&json!({"resources": [looped]})).is_empty());
}

#[test]
fn properties_variables_and_outputs_have_loops_too() {
    let template = json!({
        "variables": {
            "copy": [{"name": "names", "count": 3, "input": "[concat('n', copyIndex('names', 1))]"}],
            "in": {"copy": [{"name": "list", "count": 2, "input": {"i": "[copyIndex('list')]"}}], "x": 1},
        },
        "resources": [resource("r", json!({
            "copy": [{"name": "disks", "count": "[length(variables('names'))]", "input": {
                "lun": "[copyIndex('disks')]",
                "name": "[variables('names')[copyIndex('disks')]]",
            }}],
            "list": "[variables('in').list]",
        }))],
        "outputs": {
            "all": {"type": "array", "copy": {"count": 2, "input": "[copyIndex()]"}},
            "none": {"type": "string", "condition": false, "value": "[reference('nowhere')]"},
        },
    });
    let mut plan = plan(&template).unwrap();
    let (made, outputs) = run(&mut plan).unwrap();
    assert_eq!(
        made[0].body["properties"],
        json!({
            "disks": [{"lun": 0, "name": "n1"}, {"lun": 1, "name": "n2"}, {"lun": 2, "name": "n3"}],
            "list": [{"i": 0}, {"i": 1}],
        })
    );
    assert_eq!(outputs["all"], json!({"type": "Array", "value": [0, 1]}));
    assert!(!outputs.contains_key("none"));
}

#[test]
fn a_property_that_is_called_copy_and_is_no_loop_stays() {
    let made =
        bodies(&json!({"resources": [resource("r", json!({"copy": ["a"], "x": {"copy": true}}))]}));
    assert_eq!(
        made[0].1["properties"],
        json!({"copy": ["a"], "x": {"copy": true}})
    );
}

#[test]
fn within_a_resource_loop_a_property_loop_has_its_own_index() {
    let mut looped = resource(
        "[format('r{0}', copyIndex())]",
        json!({"copy": [{"name": "p", "count": 2, "input": "[format('{0}/{1}', copyIndex(), copyIndex('p'))]"}]}),
    );
    looped["copy"] = json!({"name": "all", "count": 2});
    let made = bodies(&json!({"resources": [looped]}));
    assert_eq!(made[1].1["properties"]["p"], json!(["1/0", "1/1"]));
}

#[test]
fn a_loop_that_is_none_is_refused() {
    let mut looped = resource("r", json!({}));
    looped["copy"] = json!({"name": "all", "count": "three"});
    let message = refusal(&json!({"resources": [looped.clone()]}));
    assert!(message.contains("is to be an integer"), "{message}");
    looped["copy"] = json!({"count": 2});
    let message = refusal(&json!({"resources": [looped.clone()]}));
    assert!(message.contains("the copy loop has no name"), "{message}");
    looped["copy"] = json!({"name": "all", "count": 2});
    let message = refusal(&json!({"resources": [looped]}));
    assert!(message.contains("is defined multiple times"), "{message}");
}
