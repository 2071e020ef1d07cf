//! What is read out of the answers of a vault.

use azure_security_keyvault_keys::models::{Key, KeyType};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use thiserror::Error as ThisError;
use time::OffsetDateTime;

use crate::{JsonWebKey, KeyAttributes, KeyBundle, KeyUrl, Tags, VaultError, VaultErrorCode};
use keys::LockedBytes;

/// Why an answer with a key is none that a disk can use.
#[derive(Debug, ThisError)]
pub(super) enum Odd {
    /// What it has, or has not.
    #[error("its answer has {0}")]
    Lacks(&'static str),
    #[error("the key {0} is no RSA key; disks need one of 2048, 3072 or 4096 bits")]
    NotRsa(String),
}

/// The key in an answer.
pub(super) fn bundle(found: Key) -> Result<KeyBundle, Odd> {
    let web_key = found.key.ok_or(Odd::Lacks("no key"))?;
    let kid = web_key.kid.ok_or(Odd::Lacks("no kid"))?;
    // It is printed, and recorded.
    if kid.parse::<KeyUrl>().is_err() {
        return Err(Odd::Lacks("a kid that is no key URL"));
    }
    let attributes = found.attributes.unwrap_or_default();
    let kty = match web_key.kty {
        Some(KeyType::Rsa) => "RSA",
        Some(KeyType::RsaHsm) => "RSA-HSM",
        _ => return Err(Odd::NotRsa(kid)),
    };
    let encode = |number: Option<Vec<u8>>| URL_SAFE_NO_PAD.encode(number.unwrap_or_default());
    let never = OffsetDateTime::UNIX_EPOCH;
    Ok(KeyBundle {
        key: JsonWebKey {
            kid,
            kty: kty.into(),
            key_ops: vec!["wrapKey".into(), "unwrapKey".into()],
            n: encode(web_key.n),
            e: encode(web_key.e),
        },
        attributes: KeyAttributes {
            enabled: attributes.enabled.unwrap_or(true),
            not_before: attributes.not_before,
            expires: attributes.expires,
            created: attributes.created.unwrap_or(never),
            updated: attributes.updated.unwrap_or(never),
            recoverable_days: None,
            recovery_level: None,
        },
        tags: Tags::new(),
    })
}

/// Decodes an unwrapped secret from the answer straight into locked memory; `None` when there is
/// none in it. The answer itself is wiped when it is freed.
pub(super) fn unwrapped(body: &[u8]) -> Result<Option<LockedBytes>, VaultError> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        value: &'a str,
    }
    let Ok(Answer { value }) = serde_json::from_slice(body) else {
        return Ok(None);
    };
    // Four characters are three bytes, and without padding the rest is known too.
    let length = value.len() / 4 * 3 + (value.len() % 4).saturating_sub(1);
    let mut secret = LockedBytes::zeroed(length).map_err(|e| {
        let what = "there is no memory for the unwrapped key";
        VaultError::caused(VaultErrorCode::Internal, what, e)
    })?;
    let decoded = URL_SAFE_NO_PAD.decode_slice(value, secret.as_mut_slice());
    Ok((decoded == Ok(length)).then_some(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unwrapped_secret_is_taken_from_an_answer_and_nothing_else() {
        for secret in [&[1u8, 2, 3][..], &[7; 64], &[0; 32], &[]] {
            let value = URL_SAFE_NO_PAD.encode(secret);
            let body = format!(r#"{{"kid":"x","value":"{value}"}}"#);
            let found = unwrapped(body.as_bytes()).unwrap().unwrap();
            assert_eq!(found.as_slice(), secret);
        }
        for body in [
            "",
            "{}",
            r#"{"value":5}"#,
            r#"{"value":"a"}"#,
            r#"{"value":"A+/="}"#,
            "{\"va",
        ] {
            assert!(unwrapped(body.as_bytes()).unwrap().is_none(), "{body}");
        }
    }
}
