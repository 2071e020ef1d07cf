//! Bytes in the bodies of the REST API: base64url.

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{NO_PAD, URL_SAFE_NO_PAD};
use base64::engine::{DecodePaddingMode, GeneralPurpose};

use super::ApiError;

/// Some clients pad base64url, which RFC 7515 §2 does not.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    NO_PAD.with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

pub(super) fn base64url(field: &str, text: &str) -> Result<Vec<u8>, ApiError> {
    BASE64URL
        .decode(text)
        .map_err(|_| ApiError::bad(format!("'{field}' is not base64url")))
}

pub(super) fn to_base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
