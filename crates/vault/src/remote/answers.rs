//! What is made of the bytes that a peer answers, without a connection: for the fuzz target
//! `vault_replies`, which holds each against the rules.

use azure_security_keyvault_keys::models::Key;
use uuid::Uuid;

use super::failure::Failure;
use super::operation::Operation;
use super::{answer, credential, identity};
use crate::{KeyBundle, VaultErrorCode};
use keys::LockedBytes;

/// The key in an answer of a vault.
///
/// # Errors
/// What is wrong with the answer.
pub fn key(body: &[u8]) -> Result<KeyBundle, String> {
    let found: Key = serde_json::from_slice(body).map_err(|_| "no key".to_owned())?;
    answer::bundle(found).map_err(|odd| odd.to_string())
}

/// What an answer of a vault that is no success means, and what is said of it.
pub fn refusal(
    status: u16,
    body: &[u8],
    challenge: Option<&str>,
    unwraps: bool,
) -> (VaultErrorCode, String) {
    let operation = match unwraps {
        true => Operation::Unwrap,
        false => Operation::Get,
    };
    let failure = Failure::of_answer(status, body, challenge, operation);
    let said = failure.said.unwrap_or_default();
    (failure.code, format!("{}: {said}", failure.detail))
}

/// The secret in an answer to an unwrap.
pub fn secret(body: &[u8]) -> Option<LockedBytes> {
    answer::unwrapped(body).ok().flatten()
}

/// The token in an answer of whoever issues them.
pub fn token(body: &[u8]) -> Option<String> {
    credential::token(body).map(|token| token.token.secret().to_owned())
}

/// Whether such an answer is a refusal, and its reason.
pub fn token_refusal(status: u16, body: &[u8]) -> (bool, String) {
    (
        credential::is_refusal(status, body),
        credential::reason(body),
    )
}

/// Whose token it is.
pub fn object_id(token: &str) -> Option<Uuid> {
    identity::object_id(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_a_url_that_can_be_printed() {
        let key_of = |kid: &str, kty: &str| {
            let body = serde_json::json!({"key": {"kid": kid, "kty": kty, "n": "AQ", "e": "AQ"}});
            key(body.to_string().as_bytes())
        };
        let kid = "https://v.vault.azure.net/keys/k/0123456789abcdef0123456789abcdef";
        assert_eq!(key_of(kid, "RSA").unwrap().key.kid, kid);
        assert!(key_of(kid, "EC").unwrap_err().contains("no RSA key"));
        for kty in ["RSA", "EC"] {
            for bad in ["", "k", "https://v/keys/k\n", "https://\u{1b}[2J/keys/k"] {
                let refused = key_of(bad, kty).unwrap_err();
                assert!(refused.ends_with("a kid that is no key URL"), "{refused:?}");
            }
        }
    }
}
