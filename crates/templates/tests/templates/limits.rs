//! What is too much is refused before it does harm: each of these once took memory or time without end, or would.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use templates::{Plan, TemplateError, parse_request};

use crate::{context, plan, refusal, resource, run, value};

/// Far more than anything here takes, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn in_time<T>(act: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = act();
    assert!(begin.elapsed() < PATIENCE, "took {:?}", begin.elapsed());
    result
}

fn parse(body: &str) -> Result<Plan, TemplateError> {
    Plan::new(&parse_request(body.as_bytes())?, context())
}

#[test]
fn ten_megabytes_are_refused_unread() {
    let error = parse(&" ".repeat(10 << 20)).unwrap_err();
    assert_eq!(error.azure_code(), "RequestContentTooLarge");
}

#[test]
fn values_without_end_are_refused() {
    let many = format!("[{}0]", "0,".repeat(1 << 20));
    let error = parse(&many).unwrap_err();
    assert!(
        error.to_string().contains("more than 500000 values"),
        "{error}"
    );
}

#[test]
fn brackets_within_brackets_are_refused() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("{a:[", "]}")] {
        for depth in [101, 300, 50_000] {
            let body = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            let error = in_time(|| parse(&body).unwrap_err());
            assert_eq!(error.azure_code(), "InvalidRequestContent", "{error}");
            in_time(|| parse(&open.repeat(depth)).unwrap_err());
        }
    }
    // Those in strings and comments are none.
    let brackets = "[{".repeat(200);
    let body = format!(
        "{{properties: {{template: {{ // {brackets}\n /* {brackets} */ '{brackets}': \"{brackets}\\\"{brackets}\" }}}}}}"
    );
    assert!(parse(&body).is_ok());
}

#[test]
fn sections_have_azures_limits() {
    let parameter = json!({"type": "int", "defaultValue": 1});
    for (section, entry, limit) in [
        ("parameters", parameter, 256),
        ("variables", json!(1), 512),
        ("outputs", json!({"type": "int", "value": 1}), 64),
        ("resources", resource("x", json!({})), 800),
    ] {
        let entries = |count: usize| -> Map<String, Value> {
            let named = |n: usize| {
                let mut entry = entry.clone();
                if section == "resources" {
                    entry["name"] = json!(format!("n{n}"));
                }
                (format!("e{n}"), entry)
            };
            (0..count).map(named).collect()
        };
        assert!(plan(&json!({section: entries(limit)})).is_ok(), "{section}");
        let message = refusal(&json!({section: entries(limit + 1)}));
        let said = format!(
            "The number of template {section} limit exceeded. Limit: '{limit}' and actual: '{}'",
            limit + 1
        );
        assert!(message.contains(&said), "{message}");
    }
}

#[test]
fn a_copy_of_a_million_is_refused() {
    let mut looped = resource("[concat('n', copyIndex())]", json!({}));
    looped["copy"] = json!({"name": "l", "count": 1_000_000});
    assert!(refusal(&json!({"resources": [looped.clone()]})).contains("between '0' and '800'"));
    looped["copy"]["count"] = json!(-1);
    assert!(refusal(&json!({"resources": [looped.clone()]})).contains("between '0' and '800'"));
    // Together they are too many, too.
    looped["copy"]["count"] = json!(500);
    let mut second = looped.clone();
    second["name"] = json!("[concat('m', copyIndex())]");
    let message = refusal(&json!({"resources": [looped, second]}));
    assert!(
        message.contains("Limit: '800' and actual: '801'"),
        "{message}"
    );

    let inner = json!({"copy": [{"name": "c", "count": 800, "input": 1}]});
    let middle = json!({"copy": [{"name": "b", "count": 800, "input": inner}]});
    let outer = json!({"copy": [{"name": "a", "count": 800, "input": middle}]});
    let message = in_time(|| refusal(&json!({ "variables": outer })));
    assert!(
        message.contains("take more than") || message.contains("takes more than"),
        "{message}"
    );
}

#[test]
fn a_long_expression_is_refused() {
    let long = |len: usize| format!("['{}']", "a".repeat(len - 4));
    assert!(value(&long(24_576)).is_ok());
    let error = value(&long(24_577)).unwrap_err();
    assert!(
        error.to_string().contains(
            "The language expression length limit exceeded. Limit: '24576' and actual: '24577'."
        ),
        "{error}"
    );
}

#[test]
fn calls_within_calls_are_refused() {
    for (open, close) in [("concat(", ")"), ("createArray(1)[", "]"), ("(", ")")] {
        for depth in [65, 1_500] {
            let expression = format!("[{}1{}]", open.repeat(depth), close.repeat(depth));
            let error = in_time(|| value(&expression).unwrap_err());
            assert_eq!(error.azure_code(), "InvalidTemplate");
        }
    }
    let nested = format!("[{}'a'{}]", "concat(".repeat(60), ")".repeat(60));
    assert_eq!(value(&nested), Ok(json!("a")));
}

/// `v0` is `first`, each other one is `next` with VAR in place of the one before it.
fn chain(len: usize, first: Value, next: &str) -> Map<String, Value> {
    let mut variables = Map::new();
    variables.insert("v0".to_owned(), first);
    for n in 1..len {
        let before = format!("variables('v{}')", n - 1);
        variables.insert(format!("v{n}"), json!(next.replace("VAR", &before)));
    }
    variables
}

#[test]
fn doubling_ends_soon() {
    for next in [
        "[concat(VAR, VAR)]",
        "[createArray(VAR, VAR)]",
        "[createObject('a', VAR, 'b', VAR)]",
        "[format('{0}{0}{0}', string(VAR))]",
        "[replace(string(VAR), 'x', string(VAR))]",
        "[join(createArray(VAR, VAR, VAR), string(VAR))]",
        "[string(createArray(VAR, VAR))]",
        "[base64(base64(string(VAR)))]",
        "[map(range(0, 10), lambda('i', VAR))]",
    ] {
        let variables = chain(100, json!("x%"), next);
        let error = in_time(|| plan(&json!({ "variables": variables })).unwrap_err());
        let message = error.to_string();
        let bounded = message.contains("takes more than") || message.contains("take more than");
        assert!(bounded || message.contains("levels"), "{next}: {message}");
    }
}

#[test]
fn a_long_chain_of_variables_is_refused_where_each_needs_the_next() {
    let forward = chain(512, json!("x"), "[concat(VAR)]");
    assert!(plan(&json!({ "variables": forward })).is_ok());
    let backward = |len| -> Map<String, Value> {
        chain(len, json!("x"), "[concat(VAR)]")
            .into_iter()
            .rev()
            .collect()
    };
    assert!(plan(&json!({"variables": backward(60)})).is_ok());
    let message = in_time(|| refusal(&json!({"variables": backward(512)})));
    assert!(
        message.contains("expressions within each other"),
        "{message}"
    );
    // Nor where there is much around each.
    let within = |value: Value| (0..90).fold(value, |value, _| json!([value]));
    let backward: Map<String, Value> = backward(512)
        .into_iter()
        .map(|(name, value)| (name, within(value)))
        .collect();
    let message = in_time(|| refusal(&json!({ "variables": backward })));
    assert!(
        message.contains("expressions within each other"),
        "{message}"
    );
}

#[test]
fn values_within_values_are_refused() {
    let template = json!({"variables": chain(90, json!("x"), "[createArray(createArray(VAR))]")});
    let message = in_time(|| refusal(&template));
    assert!(message.contains("more than 100 levels"), "{message}");
    let deep = format!("[json('{}{}')]", "[".repeat(5_000), "]".repeat(5_000));
    let error = value(&deep).unwrap_err();
    assert!(error.to_string().contains("no valid JSON"), "{error}");
}

#[test]
fn what_is_padded_or_repeated_is_measured_first() {
    for expression in [
        "[padLeft('a', 1000000000000)]",
        "[padLeft('a', 9223372036854775807)]",
        "[format('{0,2147483647}', 'a')]",
        "[range(0, 9223372036854775807)]",
        "[range(0, -1)]",
        "[length(map(range(0, 10000), lambda('i', padLeft('x', 100000))))]",
        "[length(map(range(0, 10000), lambda('i', range(0, 10000))))]",
        "[length(map(range(0, 10000), lambda('i', map(range(0, 10000), lambda('j', 1)))))]",
        "[length(reduce(range(0, 10000), 'ab', lambda('s', 'i', concat(lambdaVariables('s'), lambdaVariables('s')))))]",
    ] {
        in_time(|| value(expression).unwrap_err());
    }
}

#[test]
fn many_resources_that_depend_on_many_are_ordered_in_time() {
    let group = |name: &str, on: Value| {
        let mut looped = resource(&format!("[concat('{name}', copyIndex())]"), json!({}));
        looped["copy"] = json!({"name": name, "count": 400});
        looped["dependsOn"] = on;
        looped
    };
    let template = json!({"resources": [group("b", json!(["a"])), group("a", json!([]))]});
    in_time(|| {
        let mut plan = plan(&template).unwrap();
        let (made, _) = run(&mut plan).unwrap();
        assert_eq!((made.len(), made[0].name.as_str()), (800, "a0"));
    });
}

#[test]
fn messages_are_short_and_have_no_control_characters() {
    let name = format!("\u{1b}[31m\n{}", "x".repeat(100_000));
    let error = plan(&json!({"parameters": {name: {"type": "int"}}})).unwrap_err();
    let message = error.to_string();
    assert!(message.chars().count() <= 4_096);
    assert!(!message.contains(char::is_control), "{message}");
}

/// Of each iteration 20,000 elements are compared, and nothing is kept: it takes little memory and much time.
#[test]
fn what_computes_for_long_is_ended() {
    let compare = "[length(intersection(variables('a'), variables('b')))]";
    let template = json!({"variables": {
        "a": "[range(0, 10000)]",
        "b": "[range(20000, 10000)]",
        "copy": [{"name": "n", "count": 800, "input": compare}],
    }});
    let message = in_time(|| refusal(&template));
    assert!(message.contains("takes more than"), "{message}");
}
