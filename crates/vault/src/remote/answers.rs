//! What is made of the bytes that a peer answers, without a connection: for the fuzz target
//! `vault_replies`, which holds each against the rules.

use azure_security_keyvault_keys::models::Key;
use uuid::Uuid;

use super::failure::Failure;
use super::{Operation, identity};
use crate::{KeyBundle, VaultErrorCode};
use keys::LockedBytes;

/// The key in an answer of a vault.
///
/// # Errors
/// What is wrong with the answer.
pub fn key(body: &[u8]) -> Result<KeyBundle, String> {
    let found: Key = serde_json::from_slice(body).map_err(|_| "no key".to_owned())?;
    super::bundle(found).map_err(|odd| odd.to_string())
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
    super::unwrapped(body).ok().flatten()
}

/// The token in an answer of whoever issues them.
pub fn token(body: &[u8]) -> Option<String> {
    identity::token(body).map(|token| token.token.secret().to_owned())
}

/// Whether such an answer is a refusal, and its reason.
pub fn token_refusal(status: u16, body: &[u8]) -> (bool, String) {
    (identity::is_refusal(status, body), identity::reason(body))
}

/// Whose token it is.
pub fn object_id(token: &str) -> Option<Uuid> {
    identity::object_id(token)
}
