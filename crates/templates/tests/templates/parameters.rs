//! Which values a template takes, and how Azure words it when it does not.

use serde_json::{Value, json};

use templates::{Plan, TemplateError, parse_request};

use crate::{context, plan, plan_with, resource, run};

fn refused(declaration: Value, given: Value) -> String {
    let template = json!({"parameters": {"p": declaration}});
    let error = plan_with(&template, &json!({ "p": given })).unwrap_err();
    assert_eq!(error.azure_code(), "InvalidTemplate");
    error.to_string()
}

#[test]
fn a_missing_one_and_an_unknown_one_are_refused() {
    let template = json!({"parameters": {"p": {"type": "string"}}});
    let message = plan(&template).unwrap_err().to_string();
    assert!(
        message.starts_with("Deployment template validation failed: 'The value for the template parameter 'p' at line '1' and column '20' is not provided."),
        "{message}"
    );
    let error = plan_with(&template, &json!({"p": "a", "q": 1, "r": 2})).unwrap_err();
    assert!(
        error.to_string().contains("The template parameters 'q, r' in the parameters file are not valid; they are not present in the original template"),
        "{error}"
    );
    // Names are compared without case.
    assert!(plan_with(&template, &json!({"P": "a"})).is_ok());
}

#[test]
fn each_type_takes_its_values_alone() {
    for (kind, good, bad, expected) in [
        ("string", json!("a"), json!(1), "String"),
        ("SecureString", json!("a"), json!({}), "String"),
        ("int", json!(1), json!(1.5), "Integer"),
        ("bool", json!(true), json!("true"), "Boolean"),
        ("object", json!({}), json!([]), "Object"),
        ("secureObject", json!({}), json!("a"), "Object"),
        ("array", json!([]), json!({}), "Array"),
    ] {
        let template = json!({"parameters": {"p": {"type": kind}}});
        assert!(
            plan_with(&template, &json!({ "p": good })).is_ok(),
            "{kind}"
        );
        let message = refused(json!({ "type": kind }), bad);
        let said = format!("Expected a value of type '{expected}', but received a value of type");
        assert!(message.contains(&said), "{message}");
    }
    let error = plan(&json!({"parameters": {"p": {"type": "text"}}})).unwrap_err();
    assert!(
        error.to_string().contains("its type is to be one of"),
        "{error}"
    );
}

#[test]
fn bounds_hold_for_defaults_too() {
    for (declaration, given, said) in [
        (
            json!({"type": "string", "minLength": 3}),
            json!("ab"),
            "greater than or equal to '3'",
        ),
        (
            json!({"type": "array", "maxLength": 1}),
            json!([1, 2]),
            "less than or equal to '1'",
        ),
        (
            json!({"type": "int", "minValue": 1}),
            json!(0),
            "greater than or equal to '1'",
        ),
        (
            json!({"type": "int", "maxValue": 1}),
            json!(2),
            "less than or equal to '1'",
        ),
        (
            json!({"type": "string", "allowedValues": ["a", "b"]}),
            json!("c"),
            "The provided value 'c' for the template parameter 'p' at line '1' and column '20' is not valid. The parameter value is not part of the allowed value(s): 'a,b'.",
        ),
    ] {
        let message = refused(declaration.clone(), given.clone());
        assert!(message.contains(said), "{message}");
        let mut with_default = declaration;
        with_default["defaultValue"] = given;
        let error = plan(&json!({"parameters": {"p": with_default}})).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    let several = json!({"parameters": {"p": {"type": "array", "allowedValues": ["a", "b"]}}});
    assert!(plan_with(&several, &json!({"p": ["b", "a"]})).is_ok());
}

#[test]
fn what_is_secure_in_part_is_refused() {
    for declaration in [
        json!({"type": "object", "properties": {"pw": {"type": "securestring"}}}),
        json!({"type": "object", "properties": {"a": {"type": "object", "Properties": {"pw": {"type": "SecureObject"}}}}}),
        json!({"type": "array", "items": {"type": "secureString"}}),
        json!({"type": "array", "prefixItems": [{"type": "string"}, {"type": "secureString"}]}),
    ] {
        let error = plan(&json!({"parameters": {"p": declaration}})).unwrap_err();
        assert!(
            error.to_string().contains("secure"),
            "{declaration}: {error}"
        );
    }
    let open =
        json!({"type": "object", "properties": {"type": {"type": "string"}}, "defaultValue": {}});
    plan(&json!({"parameters": {"p": open}})).unwrap();
}

#[test]
fn defaults_may_use_others_and_what_is_new_each_time() {
    let template = json!({"parameters": {
        "name": {"type": "string", "defaultValue": "[concat(parameters('prefix'), '-1')]"},
        "prefix": {"type": "string", "defaultValue": "[resourceGroup().name]"},
        "id": {"type": "string", "defaultValue": "[newGuid()]"},
        "other": {"type": "string", "defaultValue": "[newGuid()]"},
        "now": {"type": "string", "defaultValue": "[utcNow()]"},
        "day": {"type": "string", "defaultValue": "[utcNow('yyyy-MM-dd')]"},
    }});
    let parameters = plan(&template).unwrap().parameters();
    assert_eq!(parameters["name"]["value"], "rg1-1");
    assert_eq!(parameters["now"]["value"], "20261128T114120Z");
    assert_eq!(parameters["day"]["value"], "2026-11-28");
    assert_ne!(parameters["id"], parameters["other"]);
    // With the same context everything is as it was.
    assert_eq!(plan(&template).unwrap().parameters(), parameters);

    let circle = json!({"parameters": {
        "a": {"type": "string", "defaultValue": "[parameters('b')]"},
        "b": {"type": "string", "defaultValue": "[parameters('a')]"},
    }});
    let error = plan(&circle).unwrap_err().to_string();
    assert!(error.contains("Circular reference detected"), "{error}");
}

#[test]
fn values_of_secure_ones_are_not_told() {
    let template = json!({"parameters": {"p": {"type": "securestring"}},
        "outputs": {"o": {"type": "securestring", "value": "[parameters('p')]"}}});
    let mut plan = plan_with(&template, &json!({"p": "hush-hush"})).unwrap();
    assert_eq!(plan.parameters()["p"], json!({"type": "SecureString"}));
    let (_, outputs) = run(&mut plan).unwrap();
    assert_eq!(outputs["o"], json!({"type": "SecureString"}));
    let body = br#"{properties: {parameters: {p: {value: "hush-hush"}}, template: {parameters: {p: {type: "securestring"}},
        resources: [{type: "A.B/c", apiVersion: "1", name: "n", properties: {p: "[parameters('p')]"}}]}}}"#;
    let request = parse_request(body).unwrap();
    let mut plan = Plan::new(&request, context()).unwrap();
    let step = plan.next_step().unwrap();
    let shown = format!("{request:?} {plan:?} {step:?}");
    assert!(!shown.contains("hush"), "{shown}");
    let message = refused(
        json!({"type": "securestring", "allowedValues": ["x"]}),
        json!("hush-hush"),
    );
    assert!(!message.contains("hush"), "{message}");
}

#[test]
fn what_is_made_of_secure_ones_is_not_told() {
    let template = json!({
        "parameters": {
            "p": {"type": "securestring"}, "open": {"type": "string", "defaultValue": "o"},
            "of": {"type": "string", "defaultValue": "[base64(parameters('p'))]"},
        },
        "variables": {"v": "[toUpper(parameters('p'))]", "w": "[concat(variables('v'), '!')]", "x": "x"},
        "functions": [{"namespace": "f", "members": {"same": {
            "parameters": [{"name": "a", "type": "string"}],
            "output": {"type": "string", "value": "[parameters('a')]"},
        }}}],
        "outputs": {
            "a": {"type": "string", "value": "[base64(parameters('p'))]"},
            "b": {"type": "int", "value": "[length(variables('w'))]"},
            "c": {"type": "string", "value": "[f.same(parameters('of'))]"},
            "d": {"type": "array", "value": ["[variables('w')]", "x"]},
            "e": {"type": "string", "value": "[concat(parameters('open'), variables('x'))]"},
        },
    });
    let mut plan = plan_with(&template, &json!({"p": "hush-hush"})).unwrap();
    assert_eq!(plan.parameters()["of"], json!({"type": "String"}));
    assert_eq!(plan.parameters()["open"]["value"], "o");
    let (_, outputs) = run(&mut plan).unwrap();
    for name in ["a", "b", "c", "d"] {
        assert!(outputs[name].get("value").is_none(), "{name}: {outputs:?}");
    }
    assert_eq!(outputs["e"]["value"], "ox");
}

#[test]
fn the_hash_of_a_template_tells_nothing_of_its_secrets() {
    let hash = |secret: &str, name: &str| {
        let body = json!({"properties": {"template": {
            "parameters": {"p": {"type": "securestring", "defaultValue": secret}},
            "variables": {"v": name},
        }}});
        let request = parse_request(body.to_string().as_bytes()).unwrap();
        request.template_hash().to_owned()
    };
    assert_eq!(hash("one", "a"), hash("two", "a"));
    assert_ne!(hash("one", "a"), hash("one", "b"));
}

#[test]
fn a_nullable_one_is_null_if_it_is_left_out() {
    let template = json!({"parameters": {"p": {"type": "string", "nullable": true}},
        "outputs": {"o": {"type": "string", "value": "[coalesce(parameters('p'), 'none')]"}}});
    let (_, outputs) = run(&mut plan(&template).unwrap()).unwrap();
    assert_eq!(outputs["o"]["value"], "none");
}

#[test]
fn what_is_kept_of_a_request_has_no_secrets() {
    let body = br#"{location: "local", properties: {
        parameters: {p: {value: "hush-1"}, o: {value: {a: ["hush-2", 23]}}, open: {value: "shown"}},
        template: {
            parameters: {
                p: {type: "securestring"}, o: {type: "secureObject"}, open: {type: "string"},
                d: {Type: "SecureString", DefaultValue: "hush-3", allowedValues: ["hush-3"]},
            },
            outputs: {o: {type: "string", value: "[parameters('open')]"}},
        }}}"#;
    let request = parse_request(body).unwrap();
    assert!(request.has_secrets());
    let kept = request.kept().to_string();
    assert!(!kept.contains("hush"), "{kept}");
    assert!(kept.contains("shown"), "{kept}");
    let mut secrets = Plan::new(&request, context()).unwrap().secrets();
    secrets.sort();
    assert_eq!(secrets, ["23", "hush-1", "hush-2", "hush-3"]);
}

#[test]
fn what_is_kept_makes_the_same_again() {
    let body = br#"{properties: {parameters: {n: {value: "a"}}, template: {
        parameters: {n: {type: "string"}, g: {type: "string", defaultValue: "[newGuid()]"}},
        resources: [{type: "A.B/c", apiVersion: "1", name: "[parameters('n')]", properties: {g: "[parameters('g')]"}}],
    }}}"#;
    let request = parse_request(body).unwrap();
    assert!(!request.has_secrets());
    let kept = parse_request(request.kept().to_string().as_bytes()).unwrap();
    assert_eq!(kept.template_hash(), request.template_hash());
    let made = |request| run(&mut Plan::new(request, context()).unwrap()).unwrap();
    assert_eq!(made(&kept), made(&request));
}

/// What is told of the body has nothing there.
#[test]
fn a_resource_says_where_secrets_are_in_its_body() {
    let properties = json!({
        "plain": "[parameters('open')]",
        "coded": "[base64(parameters('word'))]",
        "list": ["a", "[length(variables('of'))]"],
        "[concat('x', 'y')]": {"in": "[if(empty(parameters('word')), 1, 2)]"},
        "named": {"[parameters('word')]": 1},
    });
    let template = json!({
        "parameters": {
            "word": {"type": "securestring"}, "open": {"type": "string", "defaultValue": "o"},
        },
        "variables": {"of": "[concat(parameters('word'), '!')]"},
        "resources": [resource("r", properties)],
    });
    let mut plan = plan_with(&template, &json!({"word": "hush"})).unwrap();
    let (made, _) = run(&mut plan).unwrap();
    let mut places: Vec<String> = made[0].secrets.iter().map(|it| it.join("/")).collect();
    places.sort();
    let expected = [
        "properties/coded",
        "properties/list/1",
        "properties/named",
        "properties/xy/in",
    ];
    assert_eq!(places, expected);
    // Never without a secret.
    let open = json!({"resources": [resource("r", json!({"a": "[concat('b', 'c')]"}))]});
    let (made, _) = run(&mut plan_with(&open, &json!({})).unwrap()).unwrap();
    assert!(made[0].secrets.is_empty());
}

fn with_secret(resource: Value) -> Result<Plan, TemplateError> {
    let template = json!({
        "parameters": {
            "word": {"type": "securestring"},
            "made": {"type": "string", "defaultValue": "[base64(parameters('word'))]"},
        },
        "variables": {"v": "[concat(parameters('word'), '!')]"},
        "resources": [resource],
    });
    plan_with(&template, &json!({"word": "hush-hush"}))
}

/// Names are in ids, lists and logs, and messages are kept.
#[test]
fn no_name_is_made_with_a_secret_and_no_message_tells_one() {
    let untold = |message: &str| {
        for secret in ["hush", "aHVz"] {
            assert!(!message.contains(secret), "{message}");
        }
    };
    for (part, value, said) in [
        ("name", json!("[parameters('word')]"), "secure parameter"),
        ("name", json!("[variables('v')]"), "secure parameter"),
        ("name", json!("[parameters('made')]"), "secure parameter"),
        (
            "apiVersion",
            json!("[parameters('word')]"),
            "secure parameter",
        ),
        (
            "dependsOn",
            json!(["[parameters('word')]"]),
            "secure parameter",
        ),
        ("condition", json!("[parameters('word')]"), "no boolean"),
        (
            "copy",
            json!({"name": "c", "count": "[parameters('word')]"}),
            "*****",
        ),
        (
            "name",
            json!("[variables(parameters('word'))]"),
            "secure parameter",
        ),
    ] {
        let mut resource = resource("r", json!({}));
        resource[part] = value.clone();
        let message = with_secret(resource).unwrap_err().to_string();
        assert!(message.contains(said), "{part} {value}: {message}");
        untold(&message);
    }
    for expression in [
        "[int(parameters('word'))]",
        "[createObject('a', 1)[parameters('word')]]",
        "[reference(parameters('made'), '1').x]",
    ] {
        let resource = resource("r", json!({"a": expression}));
        let ended = with_secret(resource).and_then(|mut plan| run(&mut plan).map(drop));
        let message = ended.unwrap_err().to_string();
        assert!(
            message.contains("secure parameter"),
            "{expression}: {message}"
        );
        untold(&message);
    }
}
