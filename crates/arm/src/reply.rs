//! Answers that are no refusals.

use serde_json::{Value, json};
use server::FrontReply;

use crate::error::ArmError;

/// 200 with a resource.
pub fn item(body: Value) -> FrontReply {
    FrontReply {
        status: 200,
        body: Some(body),
        ..FrontReply::default()
    }
}

/// 201 with a resource that was made.
pub fn created(body: Value) -> FrontReply {
    FrontReply {
        status: 201,
        ..item(body)
    }
}

/// 200 with a page of a list; `next` is the URL of the next one.
pub fn list(value: Vec<Value>, next: Option<String>) -> FrontReply {
    let mut body = json!({"value": value});
    if let Some(next) = next {
        body["nextLink"] = json!(next);
    }
    item(body)
}

/// The same with items that are JSON already.
pub fn list_of_texts(items: &[String], next: Option<String>) -> FrontReply {
    let all: usize = items.iter().map(|item| item.len() + 1).sum();
    let next = next.map(|next| json!(next).to_string());
    let mut text = String::with_capacity(all + 64 + next.as_ref().map_or(0, String::len));
    text.push_str("{\"value\":[");
    for (number, item) in items.iter().enumerate() {
        if number > 0 {
            text.push(',');
        }
        text.push_str(item);
    }
    text.push(']');
    if let Some(next) = next {
        text.push_str(",\"nextLink\":");
        text.push_str(&next);
    }
    text.push('}');
    FrontReply {
        status: 200,
        text: Some(text),
        ..FrontReply::default()
    }
}

/// The answer to whoever asks whether there is something that was found, or not.
///
/// # Errors
/// Every refusal but that it is not there.
pub fn exists(found: Result<FrontReply, ArmError>) -> Result<FrontReply, ArmError> {
    match found {
        Ok(_) => Ok(done(204)),
        Err(error) if error.status == 404 => Ok(done(404)),
        Err(error) => Err(error),
    }
}

/// A status and nothing more.
pub fn done(status: u16) -> FrontReply {
    FrontReply {
        status,
        ..FrontReply::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_the_same_of_values_and_of_texts() {
        let items = [json!({"name": "a\"b"}), json!({"name": "ü"}), json!({})];
        for count in 0..=items.len() {
            for next in [None, Some("https://h/?$skiptoken=disk%2F\"".to_owned())] {
                let values = items[..count].to_vec();
                let texts: Vec<String> = values.iter().map(Value::to_string).collect();
                let of_values = list(values, next.clone()).body.unwrap();
                let of_texts = list_of_texts(&texts, next).text.unwrap();
                assert_eq!(of_texts, of_values.to_string());
            }
        }
    }
}
