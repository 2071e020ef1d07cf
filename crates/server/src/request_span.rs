//! A request to a vault or for a token, as traces have it.
//!
//! A request is worked on by several threads, so its span goes along with it, among its extensions. What a client says
//! that it is a part of is taken as it is: it names a trace and opens nothing.

use std::sync::Arc;

use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use serde_json::Value;
use traces::{Span, SpanKind, TRACEPARENT};

use crate::ApiError;
use crate::route::Route;

/// The span of a request.
#[derive(Clone)]
struct RequestSpan(Arc<Span>);

/// Begins it; nothing where nothing is traced.
pub(crate) fn begin(parts: &mut Parts) {
    if !traces::are_on() {
        return;
    }
    let path = parts.uri.path();
    let name = match Route::find(parts.method.as_str(), path) {
        Ok(route) => route.name(),
        Err(_) if parts.method == Method::GET && path.contains("token") => "token",
        Err(_) => "request",
    };
    let parent = parts.headers.get(TRACEPARENT);
    let parent = parent.and_then(|parent| parent.to_str().ok());
    let span = Span::asked_by(parent, SpanKind::Server, name);
    span.set("http.request.method", parts.method.as_str().to_owned());
    parts.extensions.insert(RequestSpan(Arc::new(span)));
}

/// That of a request, for whoever works on it.
pub(crate) fn of(parts: &Parts) -> Arc<Span> {
    let span = parts.extensions.get::<RequestSpan>();
    span.map_or_else(|| Arc::new(Span::none()), |span| span.0.clone())
}

/// The outcome of verifying the token of a request to that vault, which is a part of it.
pub(crate) fn verified<T>(
    parts: &Parts,
    vault: &str,
    verify: impl FnOnce() -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let span = of(parts);
    span.set("sealdisk.vault", vault.to_owned());
    let _entered = span.enter();
    let verifying = Span::begin("verify token");
    verifying.came_to(verify(), |error| error.code)
}

/// Ends it: with the status, and with the code of the refusal if it is one. A first request without a token, by which
/// Azure's clients ask where to get one, is none.
pub(crate) fn end(parts: &Parts, status: StatusCode, body: Option<&Value>) {
    let span = of(parts);
    span.set("http.response.status_code", i64::from(status.as_u16()));
    let has_token = parts
        .headers
        .contains_key(axum::http::header::AUTHORIZATION);
    if status.is_client_error() && (status != StatusCode::UNAUTHORIZED || has_token)
        || status.is_server_error()
    {
        let error = body.and_then(|body| body.get("error"));
        let inner = error.and_then(|error| error.pointer("/innererror/code"));
        let code = inner.or_else(|| error.and_then(|error| error.get("code")));
        let code = code.or(error).and_then(Value::as_str);
        span.failed(code.unwrap_or(status.as_str()));
    }
    span.end();
}
