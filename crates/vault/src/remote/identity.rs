//! Managed identities, and the tokens that they were issued.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use azure_core::credentials::AccessToken;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use thiserror::Error as ThisError;
use time::OffsetDateTime;
use url::Url;
use uuid::Uuid;

use super::federated::Assertion;
use crate::secret_file::read_secret;
use crate::{VaultError, VaultErrorCode};

/// A token is not used for a request that it might not outlive.
const LEAST_LIFE: Duration = Duration::from_secs(60);

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
    /// An identity of another installation that trusts one of this installation.
    Federated {
        /// Where the other one gives tokens.
        endpoint: Url,
        /// The client id of the identity there.
        client_id: Uuid,
        /// What proves that the identity here asks.
        assertion: Assertion,
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

    /// An identity of another installation. What proves who asks must not travel in the clear.
    ///
    /// # Errors
    /// [`VaultErrorCode::BadParameter`].
    pub fn federated(
        endpoint: &str,
        client_id: Uuid,
        assertion: Assertion,
    ) -> Result<Self, VaultError> {
        Ok(Self::Federated {
            endpoint: checked_token_endpoint(endpoint)?,
            client_id,
            assertion,
        })
    }

    pub(super) fn url(&self) -> Option<&Url> {
        match self {
            Self::Imds { .. } => None,
            Self::Endpoint { url, .. } => Some(url),
            Self::Federated { endpoint, .. } => Some(endpoint),
        }
    }

    /// Reads the secret, to say at once that it cannot be read.
    ///
    /// # Errors
    /// [`VaultErrorCode::BadParameter`].
    pub fn check(&self) -> Result<(), VaultError> {
        match self {
            Self::Imds { .. } | Self::Federated { .. } => Ok(()),
            Self::Endpoint { header_file, .. } => read_secret(Some(header_file), HEADER_CREDENTIAL)
                .map(drop)
                .map_err(|why| {
                    let message = format!("the managed identity's secret: {why}");
                    VaultError::new(VaultErrorCode::BadParameter, message)
                }),
        }
    }
}

/// The URL at which another installation gives tokens.
///
/// # Errors
/// [`VaultErrorCode::BadParameter`].
pub fn checked_token_endpoint(url: &str) -> Result<Url, VaultError> {
    let parsed = Url::parse(url).ok();
    let is_plain = |url: &Url| {
        url.scheme() == "https" && url.username().is_empty() && url.password().is_none()
    };
    parsed.filter(is_plain).ok_or_else(|| {
        let message = format!(
            "'{url}' is no URL at which tokens are given: it has the form https://HOST/adfs/oauth2/v2.0/token"
        );
        VaultError::new(VaultErrorCode::BadParameter, message)
    })
}

impl fmt::Display for ManagedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Imds { .. } => f.write_str("this machine's managed identity service"),
            Self::Endpoint { url, .. } => write!(f, "the identity's endpoint {url}"),
            Self::Federated { endpoint, .. } => {
                write!(
                    f,
                    "the other installation's endpoint for tokens, {endpoint}"
                )
            }
        }
    }
}

/// A systemd credential that stands in for the file of every endpoint's secret.
pub(super) const HEADER_CREDENTIAL: &str = "sealdisk-identity-header";

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

    pub(super) fn get(&self, identity: &ManagedIdentity, audience: &str) -> Option<AccessToken> {
        let key = (identity.clone(), audience.to_owned());
        let token = self.tokens().get(&key).cloned()?;
        let usable = token.expires_on > OffsetDateTime::now_utc() + LEAST_LIFE;
        usable.then_some(token)
    }

    pub(super) fn put(&self, identity: &ManagedIdentity, audience: &str, token: AccessToken) {
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
}
