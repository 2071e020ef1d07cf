//! What is said of the bodies of several types.

use serde_json::Value;

use crate::error::ArmError;

/// What a body has beside its properties: the rest asks for something that is not offered, as `zones` does.
const BESIDE: [&str; 11] = [
    "etag",
    "id",
    "identity",
    "location",
    "managedBy",
    "name",
    "properties",
    "sku",
    "systemData",
    "tags",
    "type",
];

/// Refuses properties that mean something in Azure and nothing here: whoever asks for them would rely on
/// them. What is empty or switched off asks for nothing.
pub fn refuse_unknown(body: &Value, known: &[&str], ignored: &[&str]) -> Result<(), ArmError> {
    for (name, value) in body.as_object().into_iter().flatten() {
        let is_known = BESIDE.iter().any(|known| known.eq_ignore_ascii_case(name));
        if !is_known && !asks_for_nothing(value) {
            return Err(ArmError::not_offered(
                name,
                &format!("'{name}' of this resource"),
            ));
        }
    }
    let Some(properties) = body.get("properties").and_then(Value::as_object) else {
        return Ok(());
    };
    for (name, value) in properties {
        let is = |list: &[&str]| list.iter().any(|known| known.eq_ignore_ascii_case(name));
        if !is(known) && !is(ignored) && !asks_for_nothing(value) {
            let what = format!("the property '{name}' of this resource");
            return Err(ArmError::not_offered(&format!("properties.{name}"), &what));
        }
    }
    Ok(())
}

/// Whether a property is empty or switched off.
pub fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(asks_for_nothing),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => false,
    }
}

/// A text of a body; `None` when it is not there or null.
///
/// # Errors
/// 400 for what is no text.
pub fn optional_text<'a>(body: &'a Value, pointer: &str) -> Result<Option<&'a str>, ArmError> {
    match body.pointer(pointer) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(ArmError::parameter(
            &dotted(pointer),
            format!(
                "The value of parameter {} is invalid: it is no text.",
                dotted(pointer)
            ),
        )),
    }
}

/// A text that has to be one of these, as it is written here.
///
/// # Errors
/// 400 for any other.
pub fn one_of(
    body: &Value,
    pointer: &str,
    allowed: &[&'static str],
) -> Result<Option<&'static str>, ArmError> {
    let Some(text) = optional_text(body, pointer)? else {
        return Ok(None);
    };
    let found = allowed.iter().find(|word| word.eq_ignore_ascii_case(text));
    match found {
        Some(word) => Ok(Some(word)),
        None => Err(ArmError::parameter(
            &dotted(pointer),
            format!(
                "The value of parameter {} is invalid: it has to be one of {}.",
                dotted(pointer),
                allowed.join(", ")
            ),
        )),
    }
}

/// `/properties/sku` as `properties.sku`.
pub fn dotted(pointer: &str) -> String {
    pointer.trim_start_matches('/').replace('/', ".")
}

/// A truth of a body.
///
/// # Errors
/// 400 for what is none.
pub fn optional_bool(body: &Value, pointer: &str) -> Result<Option<bool>, ArmError> {
    match body.pointer(pointer) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(ArmError::parameter(
            &dotted(pointer),
            format!(
                "The value of parameter {} is invalid: it is true or false.",
                dotted(pointer)
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_asks_for_nothing_may_be_there() {
        let body =
            json!({"properties": {"a": 1, "b": false, "c": null, "d": [], "e": {"f": null}}});
        assert!(refuse_unknown(&body, &["A"], &[]).is_ok());
        let error = refuse_unknown(&body, &[], &["b"]).unwrap_err();
        assert_eq!(error.target.as_deref(), Some("properties.a"));
        assert!(refuse_unknown(&json!({}), &[], &[]).is_ok());
        let beside = |body: Value| refuse_unknown(&body, &[], &[]).map_err(|error| error.target);
        assert_eq!(
            beside(json!({"zones": [], "Tags": {"a": "b"}, "plan": null})),
            Ok(())
        );
        assert_eq!(beside(json!({"zones": ["1"]})), Err(Some("zones".into())));
    }

    #[test]
    fn words_are_taken_in_any_case_and_only_these() {
        let body = json!({"a": "ALLOWALL", "b": 3});
        assert_eq!(
            one_of(&body, "/a", &["AllowAll"]).unwrap(),
            Some("AllowAll")
        );
        assert_eq!(one_of(&body, "/c", &["AllowAll"]).unwrap(), None);
        assert!(one_of(&body, "/a", &["DenyAll"]).is_err());
        assert!(one_of(&body, "/b", &["DenyAll"]).is_err());
        assert!(optional_bool(&body, "/a").is_err());
    }
}
