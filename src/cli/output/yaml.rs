//! YAML.

use serde_json::Value;
use serde_saphyr::{ser_options, to_string_with_options};

use crate::cli::CliError;

/// The fields of a value, as its JSON has them. A text has one line, however long it is, so that it can be found.
pub(super) fn text(value: &Value) -> Result<String, CliError> {
    to_string_with_options(value, ser_options! { prefer_block_scalars: false })
        .map_err(|e| CliError::new("OutputError", format!("cannot form the result: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_stay_texts() {
        let plain = text(&json!({"name": "web-1", "size": 1024, "set": null, "on": true})).unwrap();
        assert_eq!(plain, "name: web-1\nsize: 1024\nset: null\n\"on\": true\n");
        for odd in [
            "true",
            "null",
            "~",
            "1024",
            "1.0",
            "0x1",
            "- a",
            "a: b",
            "# a",
            "",
            " a ",
            "'",
            "\"",
            "*a",
            "&a",
            "{}",
            "a\nb",
            "a\u{1b}[2J",
            "2026-11-30T06:50:38Z",
        ] {
            let printed = text(&json!({ "v": odd })).unwrap();
            let value = printed.trim_end().strip_prefix("v: ").unwrap();
            assert_eq!(value.lines().count(), 1, "{printed}");
            let quoted = value.starts_with(['"', '\'']) && value.len() > 1;
            assert!(quoted, "{odd:?} is printed as {value}");
        }
        let long = "word ".repeat(40);
        assert_eq!(text(&json!([long])).unwrap().lines().count(), 1);
    }
}
