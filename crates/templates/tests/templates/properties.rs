//! Whatever comes in, something comes out: a plan or a refusal, never a panic, and the same again.

use proptest::prelude::*;
use serde_json::{Value, json};
use templates::{Plan, parse_request};

use crate::{bodies, context, plan, resource, run, value};

/// Pieces that expressions are made of.
const PIECES: [&str; 32] = [
    "concat",
    "(",
    ")",
    ",",
    "'",
    "''",
    "[",
    "]",
    ".",
    "?",
    " ",
    "1",
    "-",
    "variables",
    "parameters",
    "reference",
    "copyIndex",
    "if",
    "true()",
    "map",
    "lambda",
    "'a'",
    "range(0,3)",
    "createArray",
    "createObject",
    "union",
    "json",
    "format",
    "'{0}'",
    "substring",
    "é",
    "\n",
];

fn expression() -> impl Strategy<Value = String> {
    let pieces = prop::collection::vec(prop::sample::select(&PIECES[..]), 0..24);
    pieces.prop_map(|pieces| format!("[{}]", pieces.concat()))
}

/// Calls that are well-formed, whatever their arguments are.
fn call() -> impl Strategy<Value = String> {
    const NAMES: [&str; 40] = [
        "concat",
        "format",
        "toLower",
        "trim",
        "replace",
        "split",
        "join",
        "substring",
        "indexOf",
        "lastIndexOf",
        "startsWith",
        "contains",
        "length",
        "empty",
        "first",
        "last",
        "skip",
        "take",
        "union",
        "intersection",
        "range",
        "createArray",
        "createObject",
        "array",
        "string",
        "int",
        "bool",
        "json",
        "base64",
        "uri",
        "uriComponent",
        "equals",
        "less",
        "coalesce",
        "div",
        "mod",
        "min",
        "padLeft",
        "tryGet",
        "dateTimeAdd",
    ];
    let leaf = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        (-2_i64..9).prop_map(|n| n.to_string()),
        "[a-zA-Zäß%{}0-9:,. -]{0,9}".prop_map(|text| format!("'{text}'")),
        Just("null()".to_owned()),
        Just("true()".to_owned()),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        let args = prop::collection::vec(inner, 0..4);
        (prop::sample::select(&NAMES[..]), args)
            .prop_map(|(name, args)| format!("{name}({})", args.join(",")))
    })
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        let _ = parse_request(&bytes);
    }

    #[test]
    fn any_text_where_json_is_expected_is_read_or_refused(text in "[{}\\[\\]\"':,a/* \n0-9.e\\\\u-]{0,60}") {
        let body = format!(r#"{{"properties": {{template:{text}}}}}"#);
        if let Ok(request) = parse_request(body.as_bytes()) {
            let _ = Plan::new(&request, context());
        }
    }

    #[test]
    fn any_expression_has_a_value_or_a_refusal(expression in expression()) {
        let once = value(&expression);
        prop_assert_eq!(once, value(&expression));
    }

    #[test]
    fn any_call_has_a_value_or_a_refusal(call in call()) {
        if let Err(error) = value(&format!("[{call}]")) {
            prop_assert!(!error.to_string().contains(char::is_control));
        }
    }

    #[test]
    fn a_text_comes_out_as_it_went_in(text: String) {
        let escaped = if text.starts_with('[') && text.ends_with(']') && text.len() > 1 {
            format!("[{text}")
        } else {
            text.clone()
        };
        prop_assert_eq!(value(&escaped), Ok(json!(text)));
        let quoted = format!("['{}']", text.replace('\'', "''"));
        prop_assert_eq!(value(&quoted), Ok(json!(text)));
    }

    #[test]
    fn each_resource_comes_after_those_that_it_depends_on(edges in prop::collection::vec((0_usize..12, 0_usize..12), 0..30)) {
        let resources: Vec<Value> = (0..12)
            .map(|at| {
                let on = edges.iter().filter(|(from, to)| *from == at && to < from);
                let on: Vec<_> = on.map(|(_, to)| format!("n{to}")).collect();
                let mut made = resource(&format!("n{at}"), json!({}));
                made["dependsOn"] = json!(on);
                made
            })
            .rev()
            .collect();
        let names: Vec<_> = bodies(&json!({ "resources": resources })).into_iter().map(|(name, _)| name).collect();
        prop_assert_eq!(names.len(), 12);
        let place = |at: usize| names.iter().position(|name| *name == format!("n{at}"));
        for (from, to) in edges.iter().filter(|(from, to)| to < from) {
            prop_assert!(place(*to) < place(*from));
        }
    }

    #[test]
    fn edges_in_any_direction_give_an_order_or_a_circle(edges in prop::collection::vec((0_usize..8, 0_usize..8), 0..12)) {
        let resources: Vec<Value> = (0..8)
            .map(|at| {
                let on = edges.iter().filter(|(from, _)| *from == at);
                let on: Vec<_> = on.map(|(_, to)| format!("n{to}")).collect();
                let mut made = resource(&format!("n{at}"), json!({}));
                made["dependsOn"] = json!(on);
                made
            })
            .collect();
        match plan(&json!({ "resources": resources })) {
            Ok(mut plan) => prop_assert_eq!(run(&mut plan).unwrap().0.len(), 8),
            Err(error) => prop_assert!(error.to_string().contains("Circular dependency")),
        }
    }
}
