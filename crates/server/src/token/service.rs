//! Issuing tokens, and verifying them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header, encode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::issued::Issued;
use super::keys::SigningKeys;
use super::lifetime::{LEEWAY, MAX_LIFETIME, MIN_LIFETIME};
use crate::host::{Audience, audience};
use crate::shortened::shortened;
use crate::{ApiError, ServerError};
use installation::KeyStore;
use installation::catalog::IdentityRecord;

/// An unknown key makes the keys be read again, but not more often than this.
const REREAD: Duration = Duration::from_secs(5);

/// Longest token that is looked at; those of this service have less than 1 KiB.
const MAX_TOKEN: usize = 8 * 1024;

/// What a token says (Azure's claims of an application's token).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// For which service it is.
    pub aud: String,
    /// Who issued it.
    pub iss: String,
    /// When, in Unix seconds.
    pub iat: i64,
    /// Not valid before.
    pub nbf: i64,
    /// Not valid from then on.
    pub exp: i64,
    /// The identity.
    pub oid: Uuid,
    /// The identity again.
    pub sub: Uuid,
    /// The installation.
    pub tid: Uuid,
    /// The identity's client id.
    pub appid: Uuid,
    /// That it is no person.
    pub idtyp: String,
    /// Tells it from every other token.
    pub uti: Uuid,
    /// Which claims to expect.
    pub ver: String,
}

/// Issues and verifies the tokens of one installation.
pub struct TokenService {
    tenant: Uuid,
    issuer: String,
    lifetime: Duration,
    domains: Vec<String>,
    /// The hosts of the management API, where one is served.
    management: Vec<String>,
    keys: RwLock<SigningKeys>,
    reread: Mutex<Instant>,
    verified: Mutex<HashMap<String, Arc<Claims>>>,
}

/// Verified tokens that are remembered: verifying one costs ten times as much as finding it.
const REMEMBERED: usize = 1024;

impl TokenService {
    /// Opens the keys of the installation, which the first call makes. `tenant` is the
    /// installation's id.
    ///
    /// # Errors
    /// [`ServerError`]: a key that cannot be used.
    pub fn open(
        keys: &KeyStore,
        tenant: Uuid,
        lifetime: Duration,
        domains: Vec<String>,
    ) -> Result<Self, ServerError> {
        Ok(Self {
            tenant,
            issuer: format!("https://sts.vault.localhost/{tenant}/"),
            lifetime: lifetime.clamp(MIN_LIFETIME, MAX_LIFETIME),
            domains,
            management: Vec::new(),
            keys: RwLock::new(SigningKeys::open(keys)?),
            reread: Mutex::new(Instant::now()),
            verified: Mutex::new(HashMap::new()),
        })
    }

    /// Issues and accepts tokens for the management API at these hosts too, and under the names that
    /// Azure's clients have for it.
    #[must_use]
    pub fn for_management(mut self, hosts: &[String]) -> Self {
        self.management = hosts.to_vec();
        self
    }

    /// What a token for that resource is good for.
    fn audience(&self, resource: &str) -> Option<Audience> {
        audience(resource, &self.domains, &self.management)
    }

    /// The installation's id, Azure's tenant.
    pub fn tenant(&self) -> Uuid {
        self.tenant
    }

    /// Issues a token of an identity for the service that `resource` names.
    ///
    /// # Errors
    /// 400 for a resource that is not served here.
    pub fn issue(&self, identity: &IdentityRecord, resource: &str) -> Result<Issued, ApiError> {
        if self.audience(resource).is_none() {
            return Err(ApiError::new(
                axum::http::StatusCode::BAD_REQUEST,
                "invalid_resource",
                format!(
                    "the resource '{}' is not served here; ask for {}",
                    shortened(resource),
                    self.resources()
                ),
            ));
        }
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let lifetime = self.lifetime.as_secs();
        let claims = Claims {
            aud: resource.into(),
            iss: self.issuer.clone(),
            iat: now,
            nbf: now,
            exp: now.saturating_add_unsigned(lifetime),
            oid: identity.object_id,
            sub: identity.object_id,
            tid: self.tenant,
            appid: identity.client_id,
            idtyp: "app".into(),
            uti: Uuid::new_v4(),
            ver: "1.0".into(),
        };
        Ok(Issued {
            token: self.sign(&claims)?,
            expires_on: claims.exp,
            expires_in: lifetime,
        })
    }

    /// For what tokens are issued, in words.
    fn resources(&self) -> String {
        let domain = self.domains.first().map_or("", String::as_str);
        match self.management.first() {
            None => format!("https://{domain}"),
            Some(host) => format!(
                "https://{host} (the management API, as clients reach it, with or without a port) or https://{domain} \
                 (key vaults)"
            ),
        }
    }

    /// Who signs, as tokens have it.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Signs claims. Only what has the audience of a service is a token for one.
    ///
    /// # Errors
    /// 500.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, ApiError> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let (kid, key) = keys.signing();
        let header = Header {
            kid: Some(kid.into()),
            ..Header::new(Algorithm::ES256)
        };
        encode(&header, claims, key)
            .map_err(|e| ApiError::internal(format!("a token could not be signed: {e}")))
    }

    /// What something says that this service has signed for `audience` and that is valid now.
    ///
    /// # Errors
    /// 401.
    pub fn signed<T: DeserializeOwned>(&self, token: &str, audience: &str) -> Result<T, ApiError> {
        let mut validation = self.validation();
        validation.validate_aud = true;
        validation.set_audience(&[audience]);
        self.decode_by(token, &validation)
    }

    /// What a token for vaults says, if it is one of this service that is valid now. Whether its identity
    /// still exists is to be looked up each time.
    ///
    /// # Errors
    /// 401.
    pub fn verify(&self, token: &str) -> Result<Arc<Claims>, ApiError> {
        self.verify_for(token, &[Audience::Vaults])
    }

    /// As [`verify`](Self::verify), a token for one of several other things.
    ///
    /// # Errors
    /// 401.
    pub fn verify_for(&self, token: &str, wanted: &[Audience]) -> Result<Arc<Claims>, ApiError> {
        let claims = self.valid(token)?;
        match self.audience(&claims.aud) {
            Some(audience) if wanted.contains(&audience) => Ok(claims),
            _ => Err(refused(&ErrorKind::InvalidAudience)),
        }
    }

    fn valid(&self, token: &str) -> Result<Arc<Claims>, ApiError> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        if let Some(claims) = self.remembered(token) {
            if now < claims.exp.saturating_add_unsigned(LEEWAY.as_secs()) {
                return Ok(claims);
            }
            return Err(refused(&ErrorKind::ExpiredSignature));
        }
        let claims = Arc::new(self.decode(token)?);
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= REMEMBERED {
            verified.clear();
        }
        verified.insert(token.into(), Arc::clone(&claims));
        Ok(claims)
    }

    /// Replaces the signing key when it has served its time.
    ///
    /// # Errors
    /// [`ServerError`]: the keys stay as they were.
    pub fn run_due(&self) -> Result<(), ServerError> {
        let due = self
            .keys
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_due();
        if due {
            self.reopen()?;
        }
        Ok(())
    }

    fn remembered(&self, token: &str) -> Option<Arc<Claims>> {
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.get(token).cloned()
    }

    fn decode(&self, token: &str) -> Result<Claims, ApiError> {
        let claims: Claims = self.decode_by(token, &self.validation())?;
        if self.audience(&claims.aud).is_none() {
            return Err(refused(&ErrorKind::InvalidAudience));
        }
        Ok(claims)
    }

    /// What is valid, with whatever audience.
    fn validation(&self) -> Validation {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
        validation.set_issuer(&[&self.issuer]);
        // Compared by who decodes: with any port, and whatever a client put at its end.
        validation.validate_aud = false;
        validation
    }

    fn decode_by<T: DeserializeOwned>(
        &self,
        token: &str,
        validation: &Validation,
    ) -> Result<T, ApiError> {
        if token.len() > MAX_TOKEN {
            return Err(refused(&ErrorKind::InvalidToken));
        }
        let header = decode_header(token).map_err(|e| refused(e.kind()))?;
        // Only what this service itself puts into a header is looked at: the algorithm is not the
        // token's choice, and a key is one of the installation's or none at all.
        if header.alg != Algorithm::ES256 {
            return Err(refused(&ErrorKind::InvalidAlgorithm));
        }
        let kid = header.kid.unwrap_or_default();
        self.reread_for(&kid);
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let Some(key) = keys.verifying(&kid) else {
            return Err(refused(&ErrorKind::InvalidSignature));
        };
        let decoded = decode::<T>(token, key, validation).map_err(|e| refused(e.kind()))?;
        Ok(decoded.claims)
    }

    /// The public keys, as a JWK set.
    pub fn published_keys(&self) -> Value {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.published()
    }

    /// Another server of the installation may have made a new key.
    fn reread_for(&self, kid: &str) {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        if keys.verifying(kid).is_some() {
            return;
        }
        drop(keys);
        let mut last = self.reread.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() < REREAD {
            return;
        }
        *last = Instant::now();
        drop(last);
        if let Err(error) = self.reopen() {
            log::warn!("the keys of the token service could not be read again: {error}");
        }
    }

    fn reopen(&self) -> Result<(), ServerError> {
        let newer = self
            .keys
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .reopen()?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = newer;
        // A key that went takes its tokens along.
        self.verified
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        Ok(())
    }
}

/// Says as much as helps the owner of a token, as Azure does, and nothing about the keys.
fn refused(kind: &ErrorKind) -> ApiError {
    ApiError::unauthorized(match kind {
        ErrorKind::ExpiredSignature => "AKV10046: The token has expired.",
        ErrorKind::ImmatureSignature => {
            "AKV10046: The token is not valid yet; compare the clocks of client and server."
        }
        ErrorKind::InvalidAudience => "AKV10022: Invalid audience.",
        ErrorKind::InvalidIssuer => "AKV10032: Invalid issuer.",
        _ => "AKV10046: The token is not one that the token service of this vault has signed.",
    })
}

#[cfg(test)]
mod tests;
