//! What is told of a resource that a template has: nothing that was made with the value of a secure parameter, however it
//! was made, and no signature of a URL of access.

use serde_json::{Value, json};

use super::differences::is_no_change;
use super::secrets::{HIDDEN, Secrets};
use crate::error::ArmError;
use crate::types::import_source::hide_signatures;
use templates::{Resource, texts};

/// A resource, and what there is of it, as they are told: what is the same in both stays so, and what is another stays
/// another.
pub fn shown(resource: &Resource, before: Option<&Value>) -> (Resource, Option<Value>) {
    let (mut shown, mut before) = (resource.clone(), before.cloned());
    // One is never kept, so that two cannot be compared.
    hide_signatures(&mut shown.body);
    if let Some(before) = &mut before {
        hide_signatures(before);
    }
    for place in &resource.secrets {
        if place.is_empty() {
            // The name of a property of the body itself was made with one.
            shown.body = json!({});
            continue;
        }
        // Below one that is hidden nothing is left.
        let Some(wanted) = find(&mut shown.body, place) else {
            continue;
        };
        let known = before.as_mut().and_then(|before| find(before, place));
        let known = known.filter(|known| !known.is_null());
        match (
            is_no_change(&place.join("."), known.as_deref(), wanted),
            known,
        ) {
            // Nothing is wanted where there is nothing.
            (true, None) => {}
            (true, Some(known)) => {
                *known = json!(HIDDEN);
                *wanted = json!(HIDDEN);
            }
            (false, _) => *wanted = json!(HIDDEN),
        }
    }
    (shown, before)
}

/// A refusal of a resource, without the values in it that were made with those of secure parameters.
pub fn told(resource: &Resource, error: ArmError) -> ArmError {
    if resource.secrets.is_empty() {
        return error;
    }
    let (mut body, mut found) = (resource.body.clone(), Vec::new());
    for place in &resource.secrets {
        if let Some(value) = find(&mut body, place) {
            texts(value, &mut found);
        }
    }
    let secrets = Secrets::new(found);
    let hidden = |text: &str| {
        let mut text = json!(text);
        secrets.hide(&mut text);
        text.as_str().unwrap_or_default().to_owned()
    };
    let detail = error.detail.as_deref();
    ArmError {
        message: hidden(&error.message),
        target: error.target.as_deref().map(hidden),
        detail: detail.map(|(code, message)| Box::new((code.clone(), hidden(message)))),
        ..error
    }
}

/// The value at a place; names are the same in any case, as they are to those who look.
fn find<'a>(value: &'a mut Value, place: &[String]) -> Option<&'a mut Value> {
    place.iter().try_fold(value, |at, part| match at {
        Value::Object(map) => {
            let is_it = |name: &&String| name.eq_ignore_ascii_case(part);
            let name = match map.contains_key(part) {
                true => part.clone(),
                false => map.keys().find(is_it)?.clone(),
            };
            map.get_mut(&name)
        }
        Value::Array(elements) => elements.get_mut(part.parse::<usize>().ok()?),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployments::differences::differences;

    fn resource(body: Value, secrets: &[&[&str]]) -> Resource {
        let place = |place: &&[&str]| place.iter().map(|part| (*part).to_owned()).collect();
        Resource {
            id: "id".into(),
            resource_type: "a/b".into(),
            name: "n".into(),
            api_version: "1".into(),
            body,
            secrets: secrets.iter().map(place).collect(),
        }
    }

    #[test]
    fn what_is_made_with_a_secret_is_hidden_and_compared_all_the_same() {
        let body = json!({"tags": {"same": "c2VjcmV0", "other": 6, "open": "x"}, "list": ["a", "b"], "no": null});
        let places: &[&[&str]] = &[
            &["tags", "same"],
            &["tags", "other"],
            &["list", "1"],
            &["no"],
            &["not", "there"],
        ];
        let before =
            json!({"tags": {"same": "c2VjcmV0", "other": 5, "open": "x"}, "list": ["a", "b"]});
        let (told, known) = shown(&resource(body, places), Some(&before));
        assert_eq!(
            told.body,
            json!({
                "tags": {"same": HIDDEN, "other": HIDDEN, "open": "x"}, "list": ["a", HIDDEN], "no": null,
            })
        );
        let known = known.unwrap();
        assert_eq!(
            known,
            json!({"tags": {"same": HIDDEN, "other": 5, "open": "x"}, "list": ["a", HIDDEN]})
        );
        let found = differences(&known, &told.body);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].view()["path"], "tags.other");
    }

    #[test]
    fn a_body_stays_an_object() {
        let (told, _) = shown(&resource(json!({"hush": 1}), &[&[], &["hush"]]), None);
        assert_eq!(told.body, json!({}));
    }

    #[test]
    fn no_refusal_tells_what_was_made_with_a_secret() {
        let resource = resource(json!({"location": "c2VjcmV0"}), &[&["location"]]);
        let error = ArmError::new(400, "Code", "The location 'c2VjcmV0' is not available.");
        let error = ArmError {
            detail: Some(Box::new(("Code".into(), "c2VjcmV0 is none".into()))),
            ..error
        };
        let told = told(&resource, error);
        assert_eq!(told.message, "The location '*****' is not available.");
        assert_eq!(told.detail.unwrap().1, "***** is none");
    }

    #[test]
    fn another_signature_is_no_change() {
        let url = |sig: &str| format!("https://h/sas/x.vhd?si=1&sig={sig}");
        let body = json!({"sourceUri": url("secret")});
        let before = json!({"sourceUri": url("REDACTED")});
        let (told, known) = shown(&resource(body, &[]), Some(&before));
        assert!(differences(&known.unwrap(), &told.body).is_empty());
    }
}
