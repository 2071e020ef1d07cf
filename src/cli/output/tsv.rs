//! Values with tabs between them, as the Azure CLI prints them with `-o tsv`.

use serde_json::{Map, Value};

use super::printable::printable;

/// A line for each thing of a list, else one line. A list within has its length, an object within nothing, as
/// with the Azure CLI; what there is not, nothing. The things of a list have the same fields, each the place of one that
/// another has and it has not.
pub(super) fn text(value: &Value) -> String {
    let lines: Vec<String> = match value {
        Value::Array(items) => lines(items),
        one => vec![line(one)],
    };
    lines.join("\n")
}

fn lines(items: &[Value]) -> Vec<String> {
    let mut names: Vec<&str> = Vec::new();
    for name in items
        .iter()
        .filter_map(Value::as_object)
        .flat_map(Map::keys)
    {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let of_item = |item: &Value| match item {
        Value::Object(fields) => line(&completed(fields, &names)),
        other => line(other),
    };
    items.iter().map(of_item).collect()
}

/// Gives each thing of a list, or the one that there is, all of these fields, in this order, before what others it has. What a
/// value is of shows by its place alone.
pub(super) fn complete(value: &mut Value, names: &[&str]) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| complete(item, names)),
        Value::Object(fields) => *value = completed(fields, names),
        _ => {}
    }
}

fn completed(fields: &Map<String, Value>, names: &[&str]) -> Value {
    let mut all = Map::new();
    for name in names {
        let value = fields.get(*name).cloned().unwrap_or_default();
        all.insert((*name).to_owned(), value);
    }
    for (name, value) in fields {
        if !all.contains_key(name) {
            all.insert(name.clone(), value.clone());
        }
    }
    Value::Object(all)
}

/// One thing.
pub(super) fn line(value: &Value) -> String {
    let fields: Vec<String> = match value {
        Value::Object(fields) => fields.values().map(field).collect(),
        Value::Array(items) => items.iter().map(field).collect(),
        one => return field(one),
    };
    fields.join("\t")
}

fn field(value: &Value) -> String {
    match value {
        Value::Null | Value::Object(_) => String::new(),
        Value::Array(items) => items.len().to_string(),
        // A tab or a newline in it would be another field or line.
        Value::String(text) => printable(text),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn things_are_lines_and_values_are_fields() {
        for (value, expected) in [
            (json!("boot1"), "boot1"),
            (json!(1024), "1024"),
            (json!(["a", "b"]), "a\nb"),
            (json!({"b": "x", "a": null, "c": true}), "x\t\ttrue"),
            (
                json!([["a", 1, [1, 2]], ["b", null, {"x": 1}]]),
                "a\t1\t2\nb\t\t",
            ),
            (json!([{"n": "a\tb\nc"}]), "a b c"),
            (json!([]), ""),
            // One has what another has not.
            (
                json!([{"a": 1, "c": 3}, {"a": 4, "b": 5}]),
                "1\t3\t\n4\t\t5",
            ),
        ] {
            assert_eq!(text(&value), expected);
        }
    }

    #[test]
    fn fields_that_a_thing_may_have_keep_their_places() {
        let mut list = json!([{"a": 1, "z": 9}, {"b": 2}, "text"]);
        complete(&mut list, &["a", "b"]);
        let expected = json!([{"a": 1, "b": null, "z": 9}, {"a": null, "b": 2}, "text"]);
        assert_eq!(list.to_string(), expected.to_string());
        complete(&mut list, &[]);
        assert_eq!(list.to_string(), expected.to_string());
    }
}
