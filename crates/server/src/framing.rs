//! Requests that a proxy in front may have read otherwise than this server does, which are refused: of two hosts or two
//! tokens it may have looked at the other one, and where it takes one request to end another might begin.

use axum::http::header::{AUTHORIZATION, CONTENT_ENCODING, HOST, TRANSFER_ENCODING};
use axum::http::{HeaderMap, HeaderName, StatusCode};

use super::ApiError;

/// Refuses what can be read in several ways, and a body that is coded.
///
/// # Errors
/// 400, 415 and 501.
pub(crate) fn check(headers: &HeaderMap) -> Result<(), ApiError> {
    let is_twice = |name: &HeaderName| headers.get_all(name).iter().nth(1).is_some();
    // RFC 9112 §3.2.
    if is_twice(&HOST) {
        return Err(ApiError::bad("the request has more than one Host header"));
    }
    if is_twice(&AUTHORIZATION) {
        let message = "the request has more than one Authorization header";
        return Err(ApiError::bad(message));
    }
    let only = |name: &HeaderName, coding: &str| {
        let mut values = headers.get_all(name).iter();
        let is_it = |value: &str| value.trim().eq_ignore_ascii_case(coding);
        values.all(|value| value.to_str().is_ok_and(is_it)) && !is_twice(name)
    };
    if !only(&TRANSFER_ENCODING, "chunked") {
        return Err(ApiError::new(
            StatusCode::NOT_IMPLEMENTED,
            "NotImplemented",
            "a body is chunked or has a length; other transfer codings are not taken",
        ));
    }
    if !only(&CONTENT_ENCODING, "identity") {
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            "a body is taken as it is: Content-Encoding is not understood",
        ));
    }
    Ok(())
}

/// Whether the connection of a request is to end with it. One that is chunked may have had a length besides, by which a
/// proxy sees another end of it (RFC 9112 §6.1); that length is not here any more.
pub(crate) fn ends_connection(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for (headers, wanted) in [
            (vec![], None),
            (vec![(HOST, "a")], None),
            (vec![(HOST, "a"), (HOST, "a")], Some(400)),
            (vec![(AUTHORIZATION, "a"), (AUTHORIZATION, "b")], Some(400)),
            (vec![(TRANSFER_ENCODING, "Chunked")], None),
            (vec![(TRANSFER_ENCODING, "gzip, chunked")], Some(501)),
            (
                vec![
                    (TRANSFER_ENCODING, "chunked"),
                    (TRANSFER_ENCODING, "chunked"),
                ],
                Some(501),
            ),
            (vec![(CONTENT_ENCODING, "identity")], None),
            (vec![(CONTENT_ENCODING, "gzip")], Some(415)),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in &headers {
                map.append(name.clone(), HeaderValue::from_static(value));
            }
            let found = check(&map).err().map(|error| error.status.as_u16());
            assert_eq!(found, wanted, "{headers:?}");
        }
    }
}
