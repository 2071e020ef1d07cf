//! Managed identities: who issues the tokens that a vault over HTTPS asks for, and the tokens.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use azure_core::credentials::{AccessToken, TokenCredential, TokenRequestOptions};
use azure_core::error::{Error, ErrorKind};
use azure_core::http::headers::HeaderName;
use azure_core::http::{ClientOptions, Context, Method, Request, Transport};
use azure_identity::{ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error as ThisError;
use time::OffsetDateTime;
use url::Url;
use uuid::Uuid;

use super::wire::{Connection, IdentityWire};
use crate::secret_file::read_secret;
use crate::{VaultError, VaultErrorCode};

/// A token is not used for a request that it might not outlive.
const LEAST_LIFE: Duration = Duration::from_secs(60);
/// The version of the protocol that App Service's endpoint speaks.
const ENDPOINT_VERSION: &str = "2019-08-01";

/// Whom a vault over HTTPS sees: an identity for which somebody on this machine issues tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ManagedIdentity {
    /// Azure's instance metadata service, at its fixed address, or whichever source of managed
    /// identities the environment names, as Azure's own tools do.
    Imds {
        /// Which identity of the machine; its system-assigned one when it is not given.
        client_id: Option<Uuid>,
    },
    /// An endpoint that issues tokens to who shows it a secret.
    Endpoint {
        /// The endpoint, HTTPS or on this machine.
        url: Url,
        /// The file with the secret.
        header_file: PathBuf,
        /// Which identity, when the endpoint has several.
        client_id: Option<Uuid>,
    },
}

impl ManagedIdentity {
    /// An endpoint, whose secret must not travel in the clear.
    ///
    /// # Errors
    /// [`VaultErrorCode::BadParameter`].
    pub fn endpoint(
        url: &str,
        header_file: PathBuf,
        client_id: Option<Uuid>,
    ) -> Result<Self, VaultError> {
        let bad = |why: &str| {
            let message = format!("'{url}' is no endpoint of a managed identity: {why}");
            VaultError::new(VaultErrorCode::BadParameter, message)
        };
        let parsed = Url::parse(url).map_err(|e| bad(&e.to_string()))?;
        let near = match parsed.host() {
            Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(url::Host::Ipv4(address)) => address.is_loopback() || address.is_link_local(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        match parsed.scheme() {
            "https" => {}
            "http" if near => {}
            "http" => return Err(bad("use https, or an address of this machine")),
            _ => return Err(bad("it has the form https://HOST/PATH")),
        }
        Ok(Self::Endpoint {
            url: parsed,
            header_file,
            client_id,
        })
    }

    pub(super) fn url(&self) -> Option<&Url> {
        match self {
            Self::Imds { .. } => None,
            Self::Endpoint { url, .. } => Some(url),
        }
    }

    /// Reads the secret, to say at once that it cannot be read.
    ///
    /// # Errors
    /// [`VaultErrorCode::BadParameter`].
    pub fn check(&self) -> Result<(), VaultError> {
        match self {
            Self::Imds { .. } => Ok(()),
            Self::Endpoint { header_file, .. } => read_secret(Some(header_file), HEADER_CREDENTIAL)
                .map(drop)
                .map_err(|why| {
                    let message = format!("the managed identity's secret: {why}");
                    VaultError::new(VaultErrorCode::BadParameter, message)
                }),
        }
    }
}

impl fmt::Display for ManagedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Imds { .. } => f.write_str("this machine's managed identity service"),
            Self::Endpoint { url, .. } => write!(f, "the identity's endpoint {url}"),
        }
    }
}

/// A systemd credential that stands in for the file of every endpoint's secret.
const HEADER_CREDENTIAL: &str = "sealdisk-identity-header";

/// Tokens that were issued, until shortly before they expire. Clones share them.
#[derive(Clone, Default)]
pub struct TokenCache(Arc<Mutex<HashMap<(ManagedIdentity, String), AccessToken>>>);

impl fmt::Debug for TokenCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenCache")
    }
}

impl TokenCache {
    /// Forgets the tokens of an identity: one of them was not accepted.
    pub(super) fn forget(&self, identity: &ManagedIdentity) {
        self.tokens().retain(|(whose, _), _| whose != identity);
    }

    /// Whether there is a token of an identity.
    pub(super) fn holds(&self, identity: &ManagedIdentity) -> bool {
        self.tokens().keys().any(|(whose, _)| whose == identity)
    }

    fn get(&self, identity: &ManagedIdentity, audience: &str) -> Option<AccessToken> {
        let key = (identity.clone(), audience.to_owned());
        let token = self.tokens().get(&key).cloned()?;
        let usable = token.expires_on > OffsetDateTime::now_utc() + LEAST_LIFE;
        usable.then_some(token)
    }

    fn put(&self, identity: &ManagedIdentity, audience: &str, token: AccessToken) {
        let key = (identity.clone(), audience.to_owned());
        self.tokens().insert(key, token);
    }

    /// The object id in the newest token of an identity.
    pub(super) fn object_id(&self, identity: &ManagedIdentity) -> Option<Uuid> {
        let tokens = self.tokens();
        let own = tokens.iter().filter(|((whose, _), _)| whose == identity);
        let (_, newest) = own.max_by_key(|(_, token)| token.expires_on)?;
        object_id(newest.token.secret())
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, HashMap<(ManagedIdentity, String), AccessToken>> {
        // A panic elsewhere leaves a map that is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The `oid` claim of a token. Nothing is decided by it here: the vault is who checks tokens.
pub(super) fn object_id(token: &str) -> Option<Uuid> {
    #[derive(Deserialize)]
    struct Claims {
        oid: Uuid,
    }
    let payload = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    Some(claims.oid)
}

/// Why no token was issued.
#[derive(Debug, ThisError)]
#[error("{message}")]
pub(super) struct NoToken {
    /// Whether whoever issues tokens has said no, and not just failed to answer.
    pub refused: bool,
    pub message: String,
}

/// What Azure's client asks for tokens.
#[derive(Debug)]
pub(super) struct Credential {
    pub identity: ManagedIdentity,
    pub tokens: TokenCache,
}

#[async_trait]
impl TokenCredential for Credential {
    async fn get_token(
        &self,
        scopes: &[&str],
        options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        let scope = scopes.first().copied().unwrap_or_default();
        if let Some(token) = self.tokens.get(&self.identity, scope) {
            return Ok(token);
        }
        let options = options.unwrap_or_default();
        let issued = match &self.identity {
            ManagedIdentity::Imds { client_id } => imds(*client_id, scope, options).await,
            ManagedIdentity::Endpoint {
                url,
                header_file,
                client_id,
            } => {
                let secret = read_secret(Some(header_file), HEADER_CREDENTIAL)
                    .map_err(|why| unanswered(format!("its secret is missing: {why}")));
                match secret {
                    Ok(secret) => {
                        let context = &options.method_options.context;
                        endpoint(url, &secret, *client_id, scope, context).await
                    }
                    Err(e) => Err(e),
                }
            }
        };
        let token = issued.map_err(|no| {
            let message = format!("{}: {}", self.identity, no.message);
            let no = NoToken { message, ..no };
            Error::new(ErrorKind::Credential, no)
        })?;
        self.tokens.put(&self.identity, scope, token.clone());
        Ok(token)
    }
}

fn refused(message: String) -> NoToken {
    NoToken {
        refused: true,
        message,
    }
}

fn unanswered(message: String) -> NoToken {
    NoToken {
        refused: false,
        message,
    }
}

async fn imds(
    client_id: Option<Uuid>,
    scope: &str,
    options: TokenRequestOptions<'_>,
) -> Result<AccessToken, NoToken> {
    let id = client_id.map(|id| UserAssignedId::ClientId(id.to_string()));
    let credential = ManagedIdentityCredential::new(Some(ManagedIdentityCredentialOptions {
        user_assigned_id: id,
        client_options: ClientOptions {
            transport: Some(Transport::with_policy(Arc::new(IdentityWire))),
            ..ClientOptions::default()
        },
    }))
    .map_err(|e| unanswered(e.to_string()))?;
    credential
        .get_token(&[scope], Some(options))
        .await
        .map_err(|e| {
            let kind = e.downcast_ref::<Error>().map(Error::kind);
            if let Some(ErrorKind::HttpResponse {
                status,
                raw_response: Some(response),
                ..
            }) = kind
                && is_refusal(u16::from(*status), response.body())
            {
                return refused(format!("{e}{}", reason(response.body())));
            }
            unanswered(e.to_string())
        })
}

/// Asks an App Service style endpoint.
async fn endpoint(
    url: &Url,
    secret: &str,
    client_id: Option<Uuid>,
    scope: &str,
    context: &Context<'_>,
) -> Result<AccessToken, NoToken> {
    let mut url = url.clone();
    {
        let mut query = url.query_pairs_mut();
        query.append_pair("api-version", ENDPOINT_VERSION);
        query.append_pair("resource", scope.strip_suffix("/.default").unwrap_or(scope));
        if let Some(id) = client_id {
            query.append_pair("client_id", &id.to_string());
        }
    }
    let mut request = Request::new(url, Method::Get);
    request.insert_header(
        HeaderName::from_static("x-identity-header"),
        secret.to_owned(),
    );
    let ask = async {
        let response = Connection::of(context)?.ask_identity(&request).await?;
        response.try_into_raw_response().await
    };
    let response = ask
        .await
        .map_err(|e| unanswered(super::failure::chain(&e)))?;
    let status = u16::from(response.status());
    match status {
        200 => token(response.body()).ok_or_else(|| {
            unanswered("its answer is no token (access_token and expires_on)".into())
        }),
        _ if is_refusal(status, response.body()) => Err(refused(format!(
            "it gives this identity no token (HTTP {status}{})",
            reason(response.body())
        ))),
        _ => Err(unanswered(format!(
            "it answered with HTTP {status}{}",
            reason(response.body())
        ))),
    }
}

/// Statuses and values of `error` (RFC 6749 §5.2) by which whoever issues tokens says that it does
/// not give this identity one.
///
/// `invalid_request` is what Azure's instance metadata service answers when the machine's identity
/// was removed ("Identity not found"); requests from here always have the same form, so that nothing
/// else can be wrong with them. Its 404 and 410 mean that it is being updated and is to be asked again:
/// <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token#error-handling>.
/// `error_description` is not looked at, as that page demands.
const REFUSALS: [(u16, &str); 9] = [
    (400, "invalid_request"),
    (400, "invalid_client"),
    (400, "invalid_grant"),
    (400, "unauthorized_client"),
    (400, "access_denied"),
    (401, "invalid_client"),
    (401, "invalid_grant"),
    (401, "unauthorized_client"),
    (401, "access_denied"),
];

/// Whether an answer is a refusal. What stands between, a proxy or a gateway, can answer with 401,
/// 403 and 404 too, in JSON as well, and decides nothing.
pub(super) fn is_refusal(status: u16, body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Answer {
        error: String,
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else {
        return false;
    };
    REFUSALS.contains(&(status, answer.error.as_str()))
}

/// Reads an answer with a token. Endpoints differ: the expiry is text or a number, of the moment or
/// of the seconds that are left.
pub(super) fn token(body: &[u8]) -> Option<AccessToken> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: String,
        expires_on: Option<Value>,
        expires_in: Option<Value>,
    }
    let seconds = |value: Value| match value {
        Value::String(text) => text.parse::<i64>().ok(),
        Value::Number(number) => number.as_i64(),
        _ => None,
    };
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let moment = match (answer.expires_on, answer.expires_in) {
        (Some(on), _) => OffsetDateTime::from_unix_timestamp(seconds(on)?).ok()?,
        (None, Some(left)) => {
            OffsetDateTime::now_utc().checked_add(time::Duration::seconds(seconds(left)?))?
        }
        (None, None) => return None,
    };
    Some(AccessToken::new(answer.access_token, moment))
}

/// The reason that an endpoint gives in a refusal, in one of the forms in use.
pub(super) fn reason(body: &[u8]) -> String {
    let Ok(body) = serde_json::from_slice::<Value>(body) else {
        return String::new();
    };
    let text = body["error_description"]
        .as_str()
        .or_else(|| body["message"].as_str())
        .or_else(|| body["error"]["message"].as_str());
    text.map_or_else(String::new, |text| {
        format!(": {}", super::failure::one_line(text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> ManagedIdentity {
        ManagedIdentity::Imds { client_id: None }
    }

    #[test]
    fn a_secret_is_never_sent_in_the_clear_to_another_machine() {
        let endpoint = |url| ManagedIdentity::endpoint(url, "/secret".into(), None);
        for near in [
            "https://tokens.example/msi/token",
            "http://127.0.0.1:41/msi",
            "http://[::1]:41/msi",
            "http://169.254.130.2:8081/msi/token",
            "http://localhost:1/x",
        ] {
            endpoint(near).unwrap();
        }
        for far in [
            "http://tokens.example/",
            "http://10.0.0.1/",
            "ftp://localhost/",
            "x",
        ] {
            let error = endpoint(far).unwrap_err();
            assert_eq!(error.code, VaultErrorCode::BadParameter, "{far}");
        }
    }

    #[test]
    fn only_oauths_refusals_are_some() {
        let body = |error: &str| {
            format!(r#"{{"error":"{error}","error_description":"Identity not found"}}"#)
        };
        for (status, error) in REFUSALS {
            assert!(
                is_refusal(status, body(error).as_bytes()),
                "{status} {error}"
            );
            for other in [200, 302, 403, 404, 407, 410, 429, 500, 502, 503, 504] {
                assert!(
                    !is_refusal(other, body(error).as_bytes()),
                    "{other} {error}"
                );
            }
        }
        for (status, body) in [
            (400, body("invalid_resource")),
            (400, body("bad_request_102")),
            (401, body("unknown_source")),
            (401, body("invalid_request")),
            (400, body("")),
            (401, "{}".into()),
            (400, r#"{"statusCode":400,"message":"no identity"}"#.into()),
            (401, r#"{"error":{"code":"invalid_client"}}"#.into()),
            (400, r#"["error","invalid_client"]"#.into()),
            (400, String::new()),
        ] {
            assert!(!is_refusal(status, body.as_bytes()), "{status} {body}");
        }
    }

    #[test]
    fn tokens_are_kept_until_shortly_before_they_expire_and_by_identity() {
        let cache = TokenCache::default();
        let other = ManagedIdentity::Imds {
            client_id: Some(Uuid::from_u128(1)),
        };
        let in_seconds = |seconds| {
            let moment = OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
            AccessToken::new("t", moment)
        };
        cache.put(&identity(), "a", in_seconds(120));
        cache.put(&identity(), "b", in_seconds(30));
        cache.put(&other, "a", in_seconds(120));
        assert!(cache.get(&identity(), "a").is_some());
        assert!(cache.get(&identity(), "b").is_none(), "too late to be used");
        assert!(cache.get(&identity(), "c").is_none());
        cache.clone().forget(&identity());
        assert!(cache.get(&identity(), "a").is_none());
        assert!(cache.get(&other, "a").is_some());
    }

    #[test]
    fn the_object_id_is_read_from_the_token() {
        let id = Uuid::from_u128(77);
        let payload = URL_SAFE_NO_PAD.encode(format!(r#"{{"oid":"{id}","x":1}}"#));
        assert_eq!(object_id(&format!("h.{payload}.s")), Some(id));
        for token in ["", "opaque", "a.b.c", &format!("{payload}..")] {
            assert_eq!(object_id(token), None);
        }
    }

    #[test]
    fn expiry_is_read_in_every_form_that_endpoints_give() {
        let on = OffsetDateTime::from_unix_timestamp(2_000_000_000).unwrap();
        for body in [
            r#"{"access_token":"t","expires_on":"2000000000","resource":"r"}"#,
            r#"{"access_token":"t","expires_on":2000000000,"expires_in":"1"}"#,
        ] {
            let token = token(body.as_bytes()).unwrap();
            assert_eq!((token.token.secret(), token.expires_on), ("t", on));
        }
        let soon = token(br#"{"access_token":"t","expires_in":"3600"}"#).unwrap();
        assert!(soon.expires_on > OffsetDateTime::now_utc() + Duration::from_secs(3500));
        for body in [
            "",
            "{}",
            r#"{"access_token":"t"}"#,
            r#"{"access_token":"t","expires_on":"x"}"#,
            r#"{"access_token":"t","expires_in":9223372036854775807}"#,
        ] {
            assert!(token(body.as_bytes()).is_none(), "{body}");
        }
    }
}
