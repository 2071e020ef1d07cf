//! A scripted vault that wants a token, and the identity's endpoint that issues it.

use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use time::OffsetDateTime;
use uuid::Uuid;

use super::server::{Reply, Request, SECRET, json};

/// The identity's object id.
pub const OBJECT_ID: Uuid = Uuid::from_u128(0x0b1ec7);

/// A token that says whose it is; `n` tells tokens apart.
pub fn token(n: usize) -> String {
    let claims = format!(r#"{{"oid":"{OBJECT_ID}","n":{n}}}"#);
    format!("h.{}.s", URL_SAFE_NO_PAD.encode(claims))
}

/// Issues one token after the other, and tells which one was the last.
#[derive(Default)]
pub struct Issuer(Mutex<usize>);

impl Issuer {
    pub fn issued(&self) -> usize {
        *self.0.lock().unwrap()
    }

    /// What an endpoint answers that knows the identity.
    pub fn reply(&self, request: &Request) -> Reply {
        assert!(
            request.query.contains("api-version=2019-08-01"),
            "{request:?}"
        );
        assert!(
            request
                .query
                .contains("resource=https%3A%2F%2Fvault.localhost"),
            "{request:?}"
        );
        if request.header("x-identity-header") != Some(SECRET) {
            return json(401, r#"{"error":"invalid_client"}"#);
        }
        let mut issued = self.0.lock().unwrap();
        *issued += 1;
        let expires = OffsetDateTime::now_utc().unix_timestamp() + 3600;
        let answer = serde_json::json!({
            "access_token": token(*issued),
            "expires_on": expires.to_string(),
            "resource": "https://vault.localhost",
            "token_type": "Bearer",
        });
        json(200, answer.to_string())
    }
}

/// The answer to a request without a token that the vault accepts.
pub fn challenge() -> Reply {
    let header = "Bearer authorization=\"https://login.localhost/tenant\", \
                  resource=\"https://vault.localhost\"";
    let body = r#"{"error":{"code":"Unauthorized","message":"a token is needed"}}"#;
    Reply::Answer(401, vec![("www-authenticate", header.into())], body.into())
}
