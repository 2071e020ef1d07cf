//! A vault over HTTPS: Azure's Key Vault or Managed HSM, or one that `sealdisk keyvault serve`
//! serves, through Azure's own client.
//!
//! A call blocks its thread and has a runtime and connections of its own, which are gone when it
//! ends: nothing that a DEK passed through stays, but the token does.

#[doc(hidden)]
pub mod answers;
mod failure;
mod identity;
mod wire;
mod wording;

use std::sync::Arc;
use std::time::{Duration, Instant};

use azure_core::http::{ClientMethodOptions, ClientOptions, Context, RetryOptions, Transport};
use azure_security_keyvault_keys::models::{
    EncryptionAlgorithm, Key, KeyClientGetKeyOptions, KeyClientUnwrapKeyOptions,
    KeyClientWrapKeyOptions, KeyOperationParameters, KeyOperationResult, KeyType,
};
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use thiserror::Error as ThisError;
use time::OffsetDateTime;
use tokio::runtime::Runtime;
use url::Url;
use uuid::Uuid;

use self::failure::Failure;
use self::identity::Credential;
use self::wire::{Connection, VaultWire, WireSettings};
use super::{
    Caller, JsonWebKey, KeyAttributes, KeyBundle, KeyId, KeyPermission, KeyUrl, KeyVault, Purpose,
    Tags, VaultError, VaultErrorCode, Verdict, WrapAlgorithm, Wrapped,
};
use keys::LockedBytes;

pub use identity::{ManagedIdentity, TokenCache};

/// How long one attempt may take, with the token that it may need.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);
/// How often something is attempted that fails without having been decided.
const ATTEMPTS: u32 = 3;
/// The wait before the second attempt, and half of that before the third; up to as much again is
/// added by chance, so that those whom a vault failed at the same time do not come back together.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// A server that wants to be left alone for longer is reported as unreachable at once.
const LONGEST_WAIT: Duration = Duration::from_secs(3);

/// A vault over HTTPS, as an identity sees it.
pub struct RemoteVault {
    url: String,
    host: String,
    identity: ManagedIdentity,
    tokens: TokenCache,
    wire: WireSettings,
    client: KeyClient,
}

/// What is asked of the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Get,
    Wrap,
    Unwrap,
}

impl Operation {
    fn permission(self) -> KeyPermission {
        match self {
            Self::Get => KeyPermission::Get,
            Self::Wrap => KeyPermission::WrapKey,
            Self::Unwrap => KeyPermission::UnwrapKey,
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Get => "show the key",
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
        }
    }
}

/// Checks the URL of a vault over HTTPS and returns it as it is recorded: without a path, the host
/// in lower case, no port when it is 443.
///
/// # Errors
/// [`VaultErrorCode::BadParameter`].
pub fn checked_vault_url(text: &str) -> Result<String, VaultError> {
    let refuse = |why: &str| {
        let message = format!("'{text}' is no URL of a key vault: {why}");
        VaultError::new(VaultErrorCode::BadParameter, message)
    };
    let url = Url::parse(text).map_err(|e| refuse(&e.to_string()))?;
    let plain = url.username().is_empty() && url.password().is_none();
    match url.host_str() {
        _ if url.scheme() != "https" => {
            Err(refuse("it has the form https://HOST or https://HOST:PORT"))
        }
        Some(host)
            if url.path() == "/" && url.query().is_none() && url.fragment().is_none() && plain =>
        {
            let port = url
                .port()
                .map_or_else(String::new, |port| format!(":{port}"));
            Ok(format!("https://{host}{port}"))
        }
        _ => Err(refuse("only the vault's host and port belong there")),
    }
}

/// Checks what a CA file has.
///
/// # Errors
/// [`VaultErrorCode::BadParameter`].
pub fn check_ca(pem: &str) -> Result<(), VaultError> {
    wire::certificates(pem).map(drop)
}

impl RemoteVault {
    /// The vault at `url`, which [`checked_vault_url`] returned, asked by `identity`. `ca` has the
    /// certificates that alone vouch for it and for the identity's endpoint (PEM); the system's do
    /// when there are none. Nothing is asked yet.
    ///
    /// # Errors
    /// [`VaultErrorCode::BadParameter`] for certificates that are none.
    pub fn new(
        url: &str,
        ca: Option<&str>,
        identity: ManagedIdentity,
        tokens: &TokenCache,
    ) -> Result<Self, VaultError> {
        let unusable = |e: &dyn std::fmt::Display| {
            let message = format!("'{url}' is no URL of a key vault: {e}");
            VaultError::new(VaultErrorCode::BadParameter, message)
        };
        let parsed = Url::parse(url).map_err(|e| unusable(&e))?;
        let credential = Arc::new(Credential {
            identity: identity.clone(),
            tokens: tokens.clone(),
        });
        let transport = Transport::with_policy(Arc::new(VaultWire {
            identity: identity.clone(),
            tokens: tokens.clone(),
        }));
        let options = KeyClientOptions {
            client_options: ClientOptions {
                // Attempts are counted here, where it is known what decides something.
                retry: RetryOptions::none(),
                transport: Some(transport),
                ..ClientOptions::default()
            },
            ..KeyClientOptions::default()
        };
        Ok(Self {
            client: KeyClient::new(url, credential, Some(options)).map_err(|e| unusable(&e))?,
            host: parsed.host_str().unwrap_or_default().to_owned(),
            wire: WireSettings::new(ca, [&parsed].into_iter().chain(identity.url()))?,
            url: url.to_owned(),
            tokens: tokens.clone(),
            identity,
        })
    }

    /// Asks about `key` for the first time: the object id that the identity's tokens are for, which
    /// access policies and role assignments name, and the key, if the identity may see it already.
    ///
    /// # Errors
    /// [`VaultErrorCode::Unauthorized`] when there is no such identity, and every failure but
    /// [`VaultErrorCode::Forbidden`]; [`VaultErrorCode::BadParameter`] for a secret that cannot be
    /// read and for a token that names no object id.
    pub fn introduce(&self, key: &KeyId) -> Result<(Uuid, Option<KeyBundle>), VaultError> {
        self.identity.check()?;
        let bundle = match self.get(key) {
            Ok(found) => Some(self.bundle(key, found)?),
            Err(error) if error.code == VaultErrorCode::Forbidden => None,
            Err(error) => return Err(error),
        };
        let object_id = self.known_object_id().ok_or_else(|| {
            let message = format!(
                "the token that {} gave has no object id (claim 'oid'); use another identity",
                self.identity
            );
            VaultError::new(VaultErrorCode::BadParameter, message)
        })?;
        Ok((object_id, bundle))
    }

    fn known_object_id(&self) -> Option<Uuid> {
        self.tokens.object_id(&self.identity)
    }

    fn host(&self) -> &str {
        &self.host
    }

    fn get(&self, key: &KeyId) -> Result<Key, VaultError> {
        self.call(
            Operation::Get,
            key,
            &Purpose::default(),
            async |method_options| {
                let options = KeyClientGetKeyOptions {
                    key_version: key.version.clone(),
                    method_options,
                };
                let response = self.client.get_key(&key.name, Some(options)).await?;
                response.into_model()
            },
        )
    }

    /// Whether a key version's attributes forbid its use: Azure lets expired keys unwrap, but here a
    /// key that is past its time protects nothing any more. Without the permission `get` the
    /// attributes are not known, and the vault's own checks must do.
    async fn attributes_refuse(
        &self,
        key: &KeyId,
        method_options: &ClientMethodOptions<'static>,
    ) -> azure_core::Result<Option<VaultErrorCode>> {
        let options = KeyClientGetKeyOptions {
            key_version: key.version.clone(),
            method_options: method_options.clone(),
        };
        let found = match self.client.get_key(&key.name, Some(options)).await {
            Ok(response) => response.into_model()?,
            Err(e) if Failure::of(&e, Operation::Get).code == VaultErrorCode::Forbidden => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let attributes = found.attributes.unwrap_or_default();
        let now = OffsetDateTime::now_utc();
        Ok(if attributes.enabled == Some(false) {
            Some(VaultErrorCode::KeyDisabled)
        } else if attributes.not_before.is_some_and(|from| now < from) {
            Some(VaultErrorCode::KeyNotYetValid)
        } else if attributes.expires.is_some_and(|until| now >= until) {
            Some(VaultErrorCode::KeyExpired)
        } else {
            None
        })
    }

    /// Carries out one operation: as often as it makes sense, and no longer than two attempts take.
    fn call<T>(
        &self,
        operation: Operation,
        key: &KeyId,
        purpose: &Purpose,
        request: impl AsyncFn(ClientMethodOptions<'static>) -> azure_core::Result<T>,
    ) -> Result<T, VaultError> {
        let runtime = runtime()?;
        let begin = Instant::now();
        let mut wait = FIRST_WAIT;
        let mut attempt = 1;
        let mut kept_token = self.tokens.holds(&self.identity);
        let outcome = loop {
            let connection = self.wire.connect()?;
            let failure =
                match runtime.block_on(attempt_once(connection, purpose, &request, operation)) {
                    Ok(value) => break Ok(value),
                    Err(failure) => failure,
                };
            if failure.code == VaultErrorCode::Unauthorized && std::mem::take(&mut kept_token) {
                // That a token from earlier is not accepted says nothing about the identity: the
                // service may sign with another key now. A new token will tell.
                self.tokens.forget(&self.identity);
                continue;
            }
            let decided = failure.code.verdict() == Verdict::Refused
                || failure.code != VaultErrorCode::Unreachable;
            let pause = failure.retry_after.unwrap_or_default().max(jittered(wait));
            let over = attempt == ATTEMPTS || begin.elapsed() >= ATTEMPT_LIMIT;
            if decided || over || pause > LONGEST_WAIT {
                break Err(failure);
            }
            log::info!("{} is asked again: {}", self.url, failure.detail);
            std::thread::sleep(pause);
            wait *= 2;
            attempt += 1;
        };
        // A name that the resolver is still looking for must not hold the caller up.
        runtime.shutdown_background();
        outcome.map_err(|failure| wording::worded(self, operation, key, failure))
    }

    /// An answer that succeeded and does not make sense.
    fn senseless(&self, operation: Operation, key: &KeyId, what: &str) -> VaultError {
        let failure = Failure::new(
            VaultErrorCode::Unreachable,
            format!("its answer has {what}"),
        );
        wording::worded(self, operation, key, failure)
    }

    fn bundle(&self, key: &KeyId, found: Key) -> Result<KeyBundle, VaultError> {
        bundle(found).map_err(|odd| match odd {
            Odd::Lacks(what) => self.senseless(Operation::Get, key, what),
            Odd::NotRsa(_) => VaultError::new(VaultErrorCode::BadParameter, odd.to_string()),
        })
    }
}

/// Why an answer with a key is none that a disk can use.
#[derive(Debug, ThisError)]
enum Odd {
    /// What it has, or has not.
    #[error("its answer has {0}")]
    Lacks(&'static str),
    #[error("the key {0} is no RSA key; disks need one of 2048, 3072 or 4096 bits")]
    NotRsa(String),
}

/// The key in an answer.
fn bundle(found: Key) -> Result<KeyBundle, Odd> {
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

/// One attempt, with connections of its own.
async fn attempt_once<T>(
    connection: Connection,
    purpose: &Purpose,
    request: &impl AsyncFn(ClientMethodOptions<'static>) -> azure_core::Result<T>,
    operation: Operation,
) -> Result<T, Failure> {
    let options = ClientMethodOptions {
        context: Context::new()
            .with_value(connection.clone())
            .with_value(purpose.clone()),
    };
    match tokio::time::timeout(ATTEMPT_LIMIT, request(options)).await {
        Ok(outcome) => outcome.map_err(|e| Failure::of(&e, operation)),
        Err(_) => {
            let whom = match connection.asks_identity() {
                true => "the identity's endpoint",
                false => "it",
            };
            let detail = format!(
                "{whom} did not answer in {} seconds",
                ATTEMPT_LIMIT.as_secs()
            );
            Err(Failure::new(VaultErrorCode::Unreachable, detail))
        }
    }
}

fn runtime() -> Result<Runtime, VaultError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| {
            let what = "there are no resources for a connection";
            VaultError::caused(VaultErrorCode::Internal, what, e)
        })
}

fn jittered(wait: Duration) -> Duration {
    wait + wait.mul_f64(rand::random::<f64>())
}

fn algorithm(algorithm: WrapAlgorithm) -> EncryptionAlgorithm {
    match algorithm {
        WrapAlgorithm::RsaOaep256 => EncryptionAlgorithm::RsaOaep256,
    }
}

impl KeyVault for RemoteVault {
    fn url(&self) -> &str {
        &self.url
    }

    fn key(&self, _caller: &Caller, key: &KeyId) -> Result<KeyBundle, VaultError> {
        let found = self.get(key)?;
        self.bundle(key, found)
    }

    fn wrap_key(
        &self,
        caller: &Caller,
        key: &KeyId,
        wrap_algorithm: WrapAlgorithm,
        secret: &[u8],
    ) -> Result<Wrapped, VaultError> {
        let result: KeyOperationResult = self.call(
            Operation::Wrap,
            key,
            &caller.purpose,
            async |method_options| {
                let parameters = KeyOperationParameters {
                    algorithm: Some(algorithm(wrap_algorithm)),
                    value: Some(secret.to_vec()),
                    ..KeyOperationParameters::default()
                };
                let options = KeyClientWrapKeyOptions {
                    key_version: key.version.clone(),
                    method_options,
                };
                let parameters = parameters.try_into()?;
                let response = self
                    .client
                    .wrap_key(&key.name, parameters, Some(options))
                    .await?;
                response.into_model()
            },
        )?;
        let senseless = |what| self.senseless(Operation::Wrap, key, what);
        let kid = result.kid.ok_or_else(|| senseless("no kid"))?;
        let kid: KeyUrl = kid
            .parse()
            .map_err(|_| senseless("a kid that is no key URL"))?;
        let key_version = kid.key.version.ok_or_else(|| senseless("no key version"))?;
        if key.version.as_ref().is_some_and(|v| *v != key_version) {
            return Err(senseless("another key version"));
        }
        let value = result.result.ok_or_else(|| senseless("no value"))?;
        Ok(Wrapped { key_version, value })
    }

    fn unwrap_key(
        &self,
        caller: &Caller,
        key: &KeyId,
        wrap_algorithm: WrapAlgorithm,
        wrapped: &[u8],
    ) -> Result<LockedBytes, VaultError> {
        let Some(version) = &key.version else {
            let message = "unwrapping needs the key version that wrapped";
            return Err(VaultError::new(VaultErrorCode::BadParameter, message));
        };
        let body = self.call(
            Operation::Unwrap,
            key,
            &caller.purpose,
            async |method_options| {
                if let Some(refusal) = self.attributes_refuse(key, &method_options).await? {
                    return Ok(Err(refusal));
                }
                let parameters = KeyOperationParameters {
                    algorithm: Some(algorithm(wrap_algorithm)),
                    value: Some(wrapped.to_vec()),
                    ..KeyOperationParameters::default()
                };
                let options = KeyClientUnwrapKeyOptions { method_options };
                let parameters = parameters.try_into()?;
                let response = self
                    .client
                    .unwrap_key(&key.name, version, parameters, Some(options))
                    .await?;
                Ok(Ok(response.into_body()))
            },
        )?;
        let body = body.map_err(|refusal| {
            let failure = Failure::new(refusal, "as its attributes say");
            wording::worded(self, Operation::Unwrap, key, failure)
        })?;
        unwrapped(&body)?
            .ok_or_else(|| self.senseless(Operation::Unwrap, key, "no unwrapped value"))
    }
}

/// Decodes an unwrapped secret from the answer straight into locked memory; `None` when there is
/// none in it. The answer itself is wiped when it is freed.
fn unwrapped(body: &[u8]) -> Result<Option<LockedBytes>, VaultError> {
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

    #[test]
    fn a_key_is_known_by_a_url_that_can_be_printed() {
        let key = |kid: &str, kty: &str| {
            let body = serde_json::json!({"key": {"kid": kid, "kty": kty, "n": "AQ", "e": "AQ"}});
            answers::key(body.to_string().as_bytes())
        };
        let kid = "https://v.vault.azure.net/keys/k/0123456789abcdef0123456789abcdef";
        assert_eq!(key(kid, "RSA").unwrap().key.kid, kid);
        assert!(key(kid, "EC").unwrap_err().contains("no RSA key"));
        for kty in ["RSA", "EC"] {
            for bad in ["", "k", "https://v/keys/k\n", "https://\u{1b}[2J/keys/k"] {
                let refused = key(bad, kty).unwrap_err();
                assert!(refused.ends_with("a kid that is no key URL"), "{refused:?}");
            }
        }
    }

    #[test]
    fn urls_of_vaults_are_recorded_in_one_form() {
        for (text, url) in [
            ("https://V.vault.azure.net/", "https://v.vault.azure.net"),
            ("https://v.vault.azure.net:443", "https://v.vault.azure.net"),
            (
                "https://v.vault.localhost:8443",
                "https://v.vault.localhost:8443",
            ),
        ] {
            assert_eq!(checked_vault_url(text).unwrap(), url);
        }
        for bad in [
            "v.vault.azure.net",
            "http://v.vault.azure.net",
            "https://v/keys/k",
            "https://u:p@v/",
            "https://v/?x",
            "https://",
        ] {
            let error = checked_vault_url(bad).unwrap_err();
            assert_eq!(error.code, VaultErrorCode::BadParameter, "{bad}");
        }
    }

    #[test]
    fn waits_are_spread_and_bounded() {
        let waits: Vec<_> = (0..50).map(|_| jittered(FIRST_WAIT)).collect();
        assert!(
            waits
                .iter()
                .all(|w| (FIRST_WAIT..=2 * FIRST_WAIT).contains(w))
        );
        assert!(waits.iter().any(|w| *w != waits[0]));
    }
}
