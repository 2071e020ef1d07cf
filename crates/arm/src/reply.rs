//! Answers that are no refusals.

use serde_json::{Value, json};
use server::FrontReply;

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

/// A status and nothing more.
pub fn done(status: u16) -> FrontReply {
    FrontReply {
        status,
        ..FrontReply::default()
    }
}
