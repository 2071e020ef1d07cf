//! A vault over HTTPS, as an identity sees it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use azure_core::http::{ClientMethodOptions, ClientOptions, Context, RetryOptions, Transport};
use azure_security_keyvault_keys::models::{
    EncryptionAlgorithm, Key, KeyClientGetKeyOptions, KeyClientUnwrapKeyOptions,
    KeyClientWrapKeyOptions, KeyOperationParameters, KeyOperationResult,
};
use azure_security_keyvault_keys::{KeyClient, KeyClientOptions};
use time::OffsetDateTime;
use tokio::runtime::Runtime;
use url::Url;
use uuid::Uuid;

use super::answer::{Odd, bundle, unwrapped};
use super::credential::Credential;
use super::failure::Failure;
use super::identity::{ManagedIdentity, TokenCache};
use super::operation::Operation;
use super::wire::{self, Connection, VaultWire, WireSettings};
use super::wording::{Asked, worded};
use crate::{
    Caller, KeyBundle, KeyId, KeyUrl, KeyVault, Purpose, VaultError, VaultErrorCode, Verdict,
    WrapAlgorithm, Wrapped,
};
use keys::LockedBytes;
use traces::Span;

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

/// Checks what a CA file has.
///
/// # Errors
/// [`VaultErrorCode::BadParameter`].
pub fn check_ca(pem: &str) -> Result<(), VaultError> {
    wire::certificates(pem).map(drop)
}

impl RemoteVault {
    /// The vault at `url`, which [`checked_vault_url`](super::checked_vault_url) returned, asked by
    /// `identity`. Only certificates in `ca` (PEM) are trusted to have signed its own and that of
    /// the identity's endpoint, or the system's when it has none. Nothing is asked yet.
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

    /// Who was asked, for messages.
    fn asked(&self) -> Asked<'_> {
        Asked {
            url: &self.url,
            host: &self.host,
            identity: self.known_object_id(),
        }
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
        let span = Span::asking(operation.span());
        span.set("server.address", self.host.clone());
        let _entered = span.enter();
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
        let outcome = span.came_to(outcome, |failure| failure.code.as_str());
        outcome.map_err(|failure| worded(&self.asked(), operation, key, failure))
    }

    /// An answer that succeeded and does not make sense.
    fn senseless(&self, operation: Operation, key: &KeyId, what: &str) -> VaultError {
        let failure = Failure::new(
            VaultErrorCode::Unreachable,
            format!("its answer has {what}"),
        );
        worded(&self.asked(), operation, key, failure)
    }

    fn bundle(&self, key: &KeyId, found: Key) -> Result<KeyBundle, VaultError> {
        bundle(found).map_err(|odd| match odd {
            Odd::Lacks(what) => self.senseless(Operation::Get, key, what),
            Odd::NotRsa(_) => VaultError::new(VaultErrorCode::BadParameter, odd.to_string()),
        })
    }
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
            worded(&self.asked(), Operation::Unwrap, key, failure)
        })?;
        unwrapped(&body)?
            .ok_or_else(|| self.senseless(Operation::Unwrap, key, "no unwrapped value"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
