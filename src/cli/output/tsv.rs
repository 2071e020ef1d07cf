//! Values with tabs between them, as the Azure CLI prints them with `-o tsv`.

use serde_json::Value;

use super::printable::printable;

/// A line for each thing of a list, else one line. A list within has its length, an object within nothing, as
/// with the Azure CLI; what there is not, nothing.
pub(super) fn text(value: &Value) -> String {
    let lines: Vec<String> = match value {
        Value::Array(items) => items.iter().map(line).collect(),
        one => vec![line(one)],
    };
    lines.join("\n")
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
        ] {
            assert_eq!(text(&value), expected);
        }
    }
}
