//! What is an expression, and what is none.

use serde_json::json;

use crate::{plan, refusal, run, value};

#[test]
fn only_a_string_in_brackets_is_an_expression() {
    for (text, expected) in [
        ("plain", json!("plain")),
        ("[[concat('a')]", json!("[concat('a')]")),
        ("[concat('a')", json!("[concat('a')")),
        ("[[not closed", json!("[[not closed")),
        ("", json!("")),
        (
            "[ concat ( 'it''s' , \n 'ok' ) ]",
            json!("it's ok".replace(' ', "")),
        ),
        ("['text']", json!("text")),
        ("[-5]", json!(-5)),
        ("[createArray('a', 'b')[1]]", json!("b")),
        (
            "[createObject('a', createArray(createObject('b', 'deep'))).A[0]['B']]",
            json!("deep"),
        ),
        ("[createObject('a', 1).?b]", json!(null)),
        ("[createArray(1)[?5]]", json!(null)),
    ] {
        assert_eq!(value(text), Ok(expected), "{text}");
    }
}

#[test]
fn what_cannot_be_read_is_shown_with_the_place() {
    for (text, said) in [
        ("[]", "it ends too early"),
        ("[concat('a'", ""),
        ("[concat('a]", "ends too early"),
        (
            "[concat('a' 'b')]",
            "the string character ''' at position '12' is not expected",
        ),
        ("[concat('a',)]", "character ')' at position '12'"),
        ("[concat(]", "ends too early"),
        ("[a.b.c()]", "'.' at position '4'"),
        ("[concat('a')) ]", "character ')'"),
        ("[1.5]", "is not expected"),
        ("[99999999999999999999]", "character '9' at position '1'"),
        ("[é]", "character 'é'"),
        ("[parameters]", "is not valid"),
    ] {
        if said.is_empty() {
            assert_eq!(value(text), Ok(json!(text)));
            continue;
        }
        let error = value(text).unwrap_err();
        assert_eq!(error.azure_code(), "InvalidTemplate");
        assert!(error.to_string().contains(said), "{text}: {error}");
    }
}

#[test]
fn an_unknown_function_is_named_even_where_nothing_calls_it() {
    let template = json!({"resources": [], "outputs": {"o": {
        "type": "string", "value": "[if(true(), 'a', nonsense('b'))]",
    }}});
    let message = refusal(&template);
    assert!(message.contains("The template output 'o' at line '1' and column"));
    assert!(message.contains("The template function 'nonsense' is not valid."));
}

#[test]
fn functions_are_only_called_where_they_may_be() {
    for (template, said) in [
        (
            json!({"variables": {"v": "[reference('x')]"}}),
            "'reference' is not expected at this location",
        ),
        (
            json!({"variables": {"v": "[newGuid()]"}}),
            "'newGuid' is not expected",
        ),
        (
            json!({"variables": {"v": "[utcNow()]"}}),
            "'utcNow' is not expected",
        ),
        (
            json!({"parameters": {"p": {"type": "string", "defaultValue": "[variables('v')]"}}}),
            "'variables' is not expected",
        ),
        (
            json!({"variables": {"v": "[listKeys('x', '1')]"}}),
            "'listKeys' is not supported",
        ),
        (
            json!({"variables": {"v": "[toLower('a', 'b')]"}}),
            "function requires '1' argument(s) while '2' were provided",
        ),
        (
            json!({"variables": {"v": "[if(true(), 1)]"}}),
            "requires '3'",
        ),
        (
            json!({"variables": {"v": "[copyIndex()]"}}),
            "'copyIndex' is not expected",
        ),
        (
            json!({"resources": [{"type": "A.B/c", "apiVersion": "1", "name": "[reference('x')]"}]}),
            "'reference' is not expected",
        ),
    ] {
        let message = refusal(&template);
        assert!(message.contains(said), "{message}");
    }
}

#[test]
fn variables_may_use_each_other_in_any_order_and_not_themselves() {
    let template = json!({"variables": {
        "a": "[concat(variables('B'), '!')]",
        "b": {"x": ["[variables('c')]"]},
        "c": "see",
    }, "outputs": {"o": {"type": "array", "value": ["[variables('b').x[0]]"]}}});
    let message = refusal(&template);
    assert!(message.contains("to be a string or an array"), "{message}");

    let circle = json!({"variables": {"a": "[variables('b')]", "b": "[variables('A')]"}});
    let message = refusal(&circle);
    assert!(message.contains("Circular reference detected"), "{message}");

    let missing = json!({"variables": {"a": "[variables('b')]"}});
    assert!(refusal(&missing).contains("The template variable 'b' is not found"));
}

#[test]
fn user_defined_functions_see_their_parameters_alone() {
    let functions = json!([{"namespace": "contoso", "members": {"unique": {
        "parameters": [{"name": "prefix", "type": "string"}],
        "output": {"type": "string", "value": "[concat(toLower(parameters('PREFIX')), '-', resourceGroup().name)]"},
    }}}]);
    let template = json!({"functions": functions, "parameters": {"p": {"type": "string", "defaultValue": "X"}},
        "outputs": {"o": {"type": "string", "value": "[Contoso.Unique(parameters('p'))]"}}});
    let (_, outputs) = run(&mut plan(&template).unwrap()).unwrap();
    assert_eq!(outputs["o"]["value"], "x-rg1");

    let outer = json!({"functions": [{"namespace": "n", "members": {"f": {
        "output": {"type": "string", "value": "[parameters('p')]"},
    }}}], "parameters": {"p": {"type": "string", "defaultValue": "X"}},
        "variables": {"v": "[n.f()]"}});
    assert!(refusal(&outer).contains("The template parameter 'p' is not found"));

    let recursive = json!({"functions": [{"namespace": "n", "members": {"f": {
        "output": {"type": "string", "value": "[n.f()]"},
    }}}]});
    assert!(refusal(&recursive).contains("The template function 'n.f' is not valid"));
}
