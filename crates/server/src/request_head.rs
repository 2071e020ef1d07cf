//! What the head of a request says of whom it is for, and of who asks.

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::request::Parts;

use super::ApiError;

/// The host that the client means, with its port.
pub(crate) fn authority(parts: &Parts) -> &str {
    let header = || parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    // A request line with a whole URL overrides the header (RFC 9112 §3.2.2).
    let authority = parts
        .uri
        .authority()
        .map(axum::http::uri::Authority::as_str);
    authority.or_else(header).unwrap_or_default()
}

pub(crate) fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let value = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    value
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| {
            ApiError::unauthorized("AKV10000: Request is missing a Bearer or PoP token.")
        })
}
