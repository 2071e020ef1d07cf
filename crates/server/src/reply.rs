//! What a request is answered with, and how that becomes a response.

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, PRAGMA, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::ApiError;
use crate::operation::Answer;

/// A status, a body, and how to prove who asks.
#[derive(Default)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Option<Value>,
    /// A body that is JSON already, in place of the other one.
    pub(crate) text: Option<String>,
    pub(crate) challenge: Option<String>,
    pub(crate) retry_after: Option<u64>,
    /// Further headers, whose names are in lower case.
    pub(crate) headers: Vec<(&'static str, String)>,
    /// A body that is no JSON, in place of the other one.
    pub(crate) raw: Option<Body>,
}

impl Reply {
    pub(crate) fn ok(body: Value) -> Self {
        Self {
            status: StatusCode::OK,
            body: Some(body),
            ..Self::default()
        }
    }
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self {
            status: answer.status,
            body: answer.body,
            ..Self::default()
        }
    }
}

impl From<ApiError> for Reply {
    fn from(error: ApiError) -> Self {
        Self {
            status: error.status,
            body: Some(error.body()),
            retry_after: error.retry_after,
            ..Self::default()
        }
    }
}

/// A refusal of the token service: OAuth's form (RFC 6749 §5.2).
pub(crate) struct TokenError(pub(crate) ApiError);

impl From<TokenError> for Reply {
    fn from(TokenError(error): TokenError) -> Self {
        Self {
            status: error.status,
            body: Some(json!({"error": error.code, "error_description": error.message})),
            retry_after: error.retry_after,
            ..Self::default()
        }
    }
}

/// The id under which a client finds its request in its own log is given back to it.
pub(crate) fn respond(id: Uuid, request: &HeaderMap, reply: Reply) -> Response {
    let client_request_id = HeaderName::from_static("x-ms-client-request-id");
    let text = reply.text;
    let body = text.or_else(|| reply.body.map(|body| body.to_string()));
    let has_body = body.is_some();
    let body = body.map_or_else(Body::empty, Body::from);
    let mut response = Response::new(reply.raw.unwrap_or(body));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    if has_body {
        let json = HeaderValue::from_static("application/json; charset=utf-8");
        headers.insert(CONTENT_TYPE, json);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    headers.insert(
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    // Made of what was checked to have no character that a header may not.
    let text = |text: &str| HeaderValue::from_str(text).ok();
    if let Some(id) = text(&id.to_string()) {
        headers.insert(HeaderName::from_static("x-ms-request-id"), id);
    }
    if let Some(theirs) = request.get(&client_request_id) {
        headers.insert(client_request_id, theirs.clone());
    }
    if let Some(challenge) = reply.challenge.as_deref().and_then(text) {
        headers.insert(WWW_AUTHENTICATE, challenge);
    }
    for (name, value) in reply.headers {
        if let Some(value) = text(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    if let Some(seconds) = reply.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
