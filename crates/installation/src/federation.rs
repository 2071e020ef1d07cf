//! Trust between installations: an identity of one acts as an identity of another (Azure: a managed identity as a
//! multi-tenant application, by a federated credential).
//!
//! ```text
//! this installation                                     the other one
//! identity U signs (federation key)  ── assertion ──►  identity APP trusts issuer, subject U and the key
//!                                    ◄── token of APP ─  for its vaults, as for any identity
//! ```
//!
//! The key of an installation, `STATE_DIR/federation/KID.p8` (P-256, PKCS#8, mode 0600) or on the server of the catalog
//! (`shared_keys`), signs nothing else, and stays until it is deleted; the operator gives its public half to the other one, who thereby pins it. Nobody has to
//! reach anybody to check an assertion. An assertion is for one token for one service at once: it lives for
//! [`LIFETIME`], and the catalog of the other installation remembers for so long that it was used.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::catalog::{CatalogError, Change, FederatedCredentialRecord, Kind, PublicKey};
use crate::{Installation, InstallationError, KeyStore};
use keys::sha256;
use vault::audit::AuditRecord;
use vault::remote::Assertion;
use vault::{VaultError, VaultErrorCode};

/// For whom assertions are, as in Azure.
const AUDIENCE: &str = "api://AzureADTokenExchange";
/// How long one is valid.
const LIFETIME: Duration = Duration::minutes(5);
/// How far the clocks of two installations may differ.
const LEEWAY: Duration = Duration::seconds(60);
/// Longest assertion that is looked at.
const MAX_ASSERTION: usize = 8 * 1024;
/// Keys that one credential trusts at most: an old one and a new one, and some.
const MAX_KEYS: usize = 8;
/// What the key is among the keys of an installation.
const KIND: &str = "federation";
/// How the name of one ends.
const SUFFIX: &str = ".p8";

/// What another installation has to know to trust identities of this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trust {
    /// What this installation calls itself as an issuer.
    pub issuer: String,
    /// Its id.
    pub tenant_id: Uuid,
    /// For whom its assertions are.
    pub audience: String,
    /// The keys with which it signs them.
    pub keys: Vec<PublicKey>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    aud: String,
    iss: String,
    sub: Uuid,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: Uuid,
    /// For which service tokens are wanted.
    resource: String,
}

/// Why an assertion proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AssertionError {
    /// It is no token at all.
    #[error("it is malformed")]
    Malformed,
    /// No credential names who signed it for whom.
    #[error("no federated credential has its issuer, subject and audience")]
    Unknown,
    /// The signature is not that of a trusted key.
    #[error("it is not signed by a key that is trusted")]
    Signature,
    /// It is not valid now.
    #[error("it is not valid at this time; compare the clocks of both installations")]
    Time,
    /// It was used before.
    #[error("it was used before; each is good for one token")]
    Used,
}

/// What an installation calls itself in assertions. Its tokens have another issuer.
fn issuer(tenant: Uuid) -> String {
    format!("https://sts.vault.localhost/{tenant}/federation")
}

impl Installation {
    /// What another installation has to know to trust identities of this one. The first call makes the key.
    ///
    /// # Errors
    /// When the key cannot be made or read.
    pub fn trust(&self) -> Result<Trust, InstallationError> {
        Ok(Trust {
            issuer: issuer(self.id()),
            tenant_id: self.id(),
            audience: AUDIENCE.into(),
            keys: vec![FederationKey::open(&self.key_store(KIND)?)?.public()],
        })
    }

    /// What proves to another installation that an identity of this one asks.
    pub(crate) fn assertion(&self, object_id: Uuid) -> Assertion {
        let (keys, issuer) = (self.key_place(KIND), issuer(self.id()));
        Assertion::new(object_id, move |resource: &str| {
            let failed = |error: &dyn std::error::Error| {
                let message = format!("the key for assertions cannot be used: {error}");
                VaultError::new(VaultErrorCode::Internal, message)
            };
            let key = FederationKey::open(&keys).map_err(|error| failed(&error))?;
            let now = OffsetDateTime::now_utc();
            let claims = Claims {
                aud: AUDIENCE.into(),
                iss: issuer.clone(),
                sub: object_id,
                iat: now.unix_timestamp(),
                nbf: now.unix_timestamp(),
                exp: (now + LIFETIME).unix_timestamp(),
                jti: Uuid::new_v4(),
                resource: resource.into(),
            };
            key.sign(&claims).map_err(|error| failed(&error))
        })
    }

    /// Has an identity trust one of another installation.
    ///
    /// # Errors
    /// When the name is bad or taken, or `trust` is none that assertions can be checked by.
    pub fn add_federated_credential(
        &self,
        identity: &str,
        name: &str,
        trust: Trust,
        subject: Uuid,
    ) -> Result<FederatedCredentialRecord, InstallationError> {
        crate::identities::check_name(name)?;
        let why = match () {
            () if trust.issuer == issuer(self.id()) => {
                Some("it is that of this installation, whose identities need no other")
            }
            () if trust.audience != AUDIENCE => Some("its assertions are for another audience"),
            () if trust.issuer.len() > 1024 || !trust.issuer.starts_with("https://") => {
                Some("its issuer is no https:// URL")
            }
            () if trust.keys.is_empty() || trust.keys.len() > MAX_KEYS => {
                Some("it has no keys, or too many")
            }
            () if !trust.keys.iter().all(PublicKey::is_usable) => {
                Some("one of its keys is no P-256 key in the form of a JWK")
            }
            () => None,
        };
        if let Some(why) = why {
            let message = format!("the trust document cannot be used: {why}");
            return Err(VaultError::new(VaultErrorCode::BadParameter, message).into());
        }
        let record = FederatedCredentialRecord {
            identity: self.unlocked_identity(identity, Change::Write)?,
            name: name.into(),
            issuer: trust.issuer,
            subject,
            keys: trust.keys,
            created: OffsetDateTime::now_utc(),
        };
        let intent = self.federation_record("FederatedCredentialCreate", &record);
        self.recorded_identity(intent, || {
            Ok(self.catalog().insert_federated_credential(&record)?)
        })?;
        Ok(record)
    }

    /// Has an identity trust one of another installation no more. Tokens that it was given live out their time.
    ///
    /// # Errors
    /// When there is no such credential.
    pub fn delete_federated_credential(
        &self,
        identity: &str,
        name: &str,
    ) -> Result<(), InstallationError> {
        let identity = self.unlocked_identity(identity, Change::Delete)?;
        let all = self.catalog().federated_credentials(Some(identity))?;
        let missing = || CatalogError::NotFound {
            kind: Kind::FederatedCredential,
            name: name.into(),
        };
        let found = all
            .iter()
            .find(|known| known.name.eq_ignore_ascii_case(name));
        let record = found.ok_or_else(missing)?;
        let intent = self.federation_record("FederatedCredentialDelete", record);
        self.recorded_identity(intent, || {
            match self.catalog().delete_federated_credential(identity, name)? {
                true => Ok(()),
                false => Err(missing().into()),
            }
        })
    }

    /// The federated credential of an identity by which an assertion proves to be that identity, which gets a token for
    /// that service. It does so once: whoever reads it on its way has no use for it.
    ///
    /// # Errors
    /// Why it does not, within a failure to read the catalog.
    pub fn check_assertion(
        &self,
        identity: Uuid,
        assertion: &str,
        resource: &str,
    ) -> Result<Result<FederatedCredentialRecord, AssertionError>, InstallationError> {
        let known = self.catalog().federated_credentials(Some(identity))?;
        let (credential, expires) = match trusted(known, assertion, resource) {
            Ok(trusted) => trusted,
            Err(error) => return Ok(Err(error)),
        };
        // Of a signature there are two that are right, of what is signed one.
        let signed = assertion
            .rsplit_once('.')
            .map_or(assertion, |(signed, _)| signed);
        let used = sha256(signed.as_bytes());
        match self.catalog().use_assertion(&used, expires)? {
            true => Ok(Ok(credential)),
            false => Ok(Err(AssertionError::Used)),
        }
    }

    fn federation_record(
        &self,
        operation: &str,
        record: &FederatedCredentialRecord,
    ) -> AuditRecord {
        let operator = self.operator();
        AuditRecord::new(operator.object_id, &operator.origin, operation).with_detail(format!(
            "{} {} trusts {} of {}",
            record.identity, record.name, record.subject, record.issuer
        ))
    }
}

/// Which of these credentials an assertion is for, and when it counts no more.
fn trusted(
    known: Vec<FederatedCredentialRecord>,
    assertion: &str,
    resource: &str,
) -> Result<(FederatedCredentialRecord, OffsetDateTime), AssertionError> {
    if assertion.len() > MAX_ASSERTION {
        return Err(AssertionError::Malformed);
    }
    let header = jsonwebtoken::decode_header(assertion).map_err(|_| AssertionError::Malformed)?;
    let kid = header.kid.unwrap_or_default();
    // Of several reasons the one that tells most: a credential that is meant, whose key or time is wrong.
    let mut why = AssertionError::Unknown;
    for credential in known {
        let key = credential.keys.iter().find(|key| key.kid == kid);
        match key.map(|key| check(&credential, key, assertion, resource)) {
            Some(Ok(expires)) => return Ok((credential, expires)),
            None | Some(Err(AssertionError::Unknown)) => {}
            Some(Err(error)) => why = error,
        }
    }
    Err(why)
}

fn check(
    credential: &FederatedCredentialRecord,
    key: &PublicKey,
    assertion: &str,
    resource: &str,
) -> Result<OffsetDateTime, AssertionError> {
    let public =
        DecodingKey::from_ec_components(&key.x, &key.y).map_err(|_| AssertionError::Signature)?;
    // The algorithm is not the assertion's choice.
    let mut validation = Validation::new(Algorithm::ES256);
    validation.leeway = LEEWAY.whole_seconds().unsigned_abs();
    validation.validate_nbf = true;
    validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
    validation.set_issuer(&[&credential.issuer]);
    validation.set_audience(&[AUDIENCE]);
    let claims = jsonwebtoken::decode::<Claims>(assertion, &public, &validation)
        .map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature | ErrorKind::ImmatureSignature => AssertionError::Time,
            ErrorKind::InvalidSignature => AssertionError::Signature,
            ErrorKind::InvalidIssuer | ErrorKind::InvalidAudience => AssertionError::Unknown,
            _ => AssertionError::Malformed,
        })?
        .claims;
    let same = |one: &str, other: &str| {
        let trimmed = |text: &str| text.trim_end_matches('/').to_ascii_lowercase();
        trimmed(one) == trimmed(other)
    };
    if claims.sub != credential.subject || !same(&claims.resource, resource) {
        return Err(AssertionError::Unknown);
    }
    // One that is valid for long could be kept and used for long.
    let life = claims.exp.saturating_sub(claims.iat);
    let ahead = claims
        .iat
        .saturating_sub(OffsetDateTime::now_utc().unix_timestamp());
    match life <= LIFETIME.whole_seconds() && ahead <= LEEWAY.whole_seconds() {
        true => OffsetDateTime::from_unix_timestamp(claims.exp)
            .map(|expires| expires + LEEWAY)
            .map_err(|_| AssertionError::Time),
        false => Err(AssertionError::Time),
    }
}

/// The key of this installation.
struct FederationKey {
    kid: String,
    pkcs8: Zeroizing<Vec<u8>>,
    public: Vec<u8>,
}

impl FederationKey {
    /// Reads the key; the first call makes it.
    fn open(store: &KeyStore) -> Result<Self, InstallationError> {
        let keys = store.open()?;
        let unusable = |name: &str, why: &str| InstallationError::KeyFile {
            path: store.place_of(name),
            source: std::io::Error::other(why.to_owned()),
        };
        let mut names = keys.names()?;
        names.retain(|name| name.ends_with(SUFFIX));
        // Of several the first one is everybody's.
        let (name, pkcs8) = match names.into_iter().next() {
            Some(name) => {
                let gone = || unusable(&name, "it is not there any more");
                let pkcs8 = keys.read(&name)?.ok_or_else(gone)?;
                (name, pkcs8)
            }
            None => {
                let name = format!("{}{SUFFIX}", Uuid::new_v4().simple());
                let random = SystemRandom::new();
                let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random);
                let made = made.map_err(|_| unusable(&name, "no key was made"))?;
                keys.put(&name, made.as_ref(), true)?;
                (name, Zeroizing::new(made.as_ref().to_vec()))
            }
        };
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8);
        let pair = pair.map_err(|_| unusable(&name, "it is not a P-256 key in PKCS#8"))?;
        Ok(Self {
            kid: name.trim_end_matches(SUFFIX).into(),
            public: pair.public_key().as_ref().to_vec(),
            pkcs8,
        })
    }

    fn public(&self) -> PublicKey {
        // An uncompressed point: 4, then both coordinates.
        let coordinate = |from: usize| {
            let bytes = self.public.get(from..from + 32).unwrap_or_default();
            URL_SAFE_NO_PAD.encode(bytes)
        };
        PublicKey {
            kty: "EC".into(),
            crv: "P-256".into(),
            kid: self.kid.clone(),
            x: coordinate(1),
            y: coordinate(33),
        }
    }

    fn sign(&self, claims: &impl Serialize) -> Result<String, jsonwebtoken::errors::Error> {
        let header = Header {
            kid: Some(self.kid.clone()),
            ..Header::new(Algorithm::ES256)
        };
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_ec_der(&self.pkcs8))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SERVICE: &str = "https://vault.localhost";

    struct Two {
        _dirs: [tempfile::TempDir; 2],
        ours: Installation,
        theirs: Installation,
        /// Our identity, and the one of theirs that trusts it.
        subject: Uuid,
        app: Uuid,
    }

    fn two() -> Two {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let ours = Installation::open(dirs[0].path()).unwrap();
        let theirs = Installation::open(dirs[1].path()).unwrap();
        let subject = ours.create_identity("disks").unwrap().0.object_id;
        let app = theirs.create_identity("app").unwrap().0.object_id;
        let trust = ours.trust().unwrap();
        theirs
            .add_federated_credential("app", "from-ours", trust, subject)
            .unwrap();
        Two {
            _dirs: dirs,
            ours,
            theirs,
            subject,
            app,
        }
    }

    impl Two {
        fn checked(&self, assertion: &str) -> Result<String, AssertionError> {
            self.checked_for(assertion, SERVICE)
        }

        fn checked_for(&self, assertion: &str, resource: &str) -> Result<String, AssertionError> {
            let checked = self.theirs.check_assertion(self.app, assertion, resource);
            let checked = checked.unwrap();
            checked.map(|credential| credential.name)
        }

        fn claims(&self) -> Claims {
            let now = OffsetDateTime::now_utc().unix_timestamp();
            Claims {
                aud: AUDIENCE.into(),
                iss: issuer(self.ours.id()),
                sub: self.subject,
                iat: now,
                nbf: now,
                exp: now + LIFETIME.whole_seconds(),
                jti: Uuid::new_v4(),
                resource: SERVICE.into(),
            }
        }

        fn signed(&self, change: impl FnOnce(&mut Claims)) -> String {
            let mut claims = self.claims();
            change(&mut claims);
            let key = FederationKey::open(&self.ours.key_store(KIND).unwrap()).unwrap();
            key.sign(&claims).unwrap()
        }
    }

    #[test]
    fn an_assertion_proves_its_subject_to_who_trusts_it() {
        let two = two();
        let signed = two.ours.assertion(two.subject).sign(SERVICE).unwrap();
        assert_eq!(two.checked(&signed).as_deref(), Ok("from-ours"));
        // Another identity of ours, and another of theirs.
        let other = two.ours.assertion(Uuid::new_v4()).sign(SERVICE).unwrap();
        assert_eq!(two.checked(&other), Err(AssertionError::Unknown));
        let app = two.theirs.create_identity("other").unwrap().0.object_id;
        let checked = two.theirs.check_assertion(app, &signed, SERVICE).unwrap();
        assert_eq!(checked.unwrap_err(), AssertionError::Unknown);
        two.theirs
            .delete_federated_credential("app", "FROM-ours")
            .unwrap();
        assert_eq!(two.checked(&signed), Err(AssertionError::Unknown));
    }

    #[test]
    fn an_assertion_is_good_for_one_token_for_its_service() {
        let two = two();
        let signed = two.ours.assertion(two.subject).sign(SERVICE).unwrap();
        for other in ["https://localhost:8443", "https://vault.localhost.evil", ""] {
            let checked = two.checked_for(&signed, other);
            assert_eq!(checked, Err(AssertionError::Unknown), "{other}");
        }
        assert!(two.checked_for(&signed, "https://VAULT.localhost/").is_ok());
        assert_eq!(two.checked(&signed), Err(AssertionError::Used));
        assert_eq!(two.checked(&mirrored(&signed)), Err(AssertionError::Used));
        // It is forgotten when it counts no more.
        let soon = OffsetDateTime::now_utc() - Duration::SECOND;
        let catalog = two.theirs.catalog();
        assert!(catalog.use_assertion(&[1; 32], soon).unwrap());
        assert!(catalog.use_assertion(&[1; 32], soon).unwrap());
    }

    /// An assertion with the other signature that is right: the order of the curve less S.
    fn mirrored(assertion: &str) -> String {
        const ORDER: [u8; 32] = [
            0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63,
            0x25, 0x51,
        ];
        let (signed, signature) = assertion.rsplit_once('.').unwrap();
        let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let mut borrow = 0;
        for at in (0..32).rev() {
            let rest = i32::from(ORDER[at]) - i32::from(signature[32 + at]) - borrow;
            borrow = i32::from(rest < 0);
            signature[32 + at] = u8::try_from(rest.rem_euclid(256)).unwrap();
        }
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    #[test]
    fn what_is_not_as_it_has_to_be_proves_nothing() {
        let two = two();
        assert!(two.checked(&two.signed(|_| ())).is_ok());
        for (signed, why) in [
            (
                two.signed(|c| c.aud = "https://x".into()),
                AssertionError::Unknown,
            ),
            (two.signed(|c| c.iss.push('x')), AssertionError::Unknown),
            (two.signed(|c| c.exp -= 3600), AssertionError::Time),
            (two.signed(|c| c.nbf += 3600), AssertionError::Time),
            (two.signed(|c| c.exp += 3600), AssertionError::Time),
            (
                two.signed(|c| (c.iat, c.exp) = (c.iat + 3600, c.exp + 3600)),
                AssertionError::Time,
            ),
        ] {
            assert_eq!(two.checked(&signed), Err(why), "{signed}");
        }
        for garbage in ["", ".", "a.b.c", &"x".repeat(100_000)] {
            assert_eq!(two.checked(garbage), Err(AssertionError::Malformed));
        }
        // Another key under the id of the trusted one, and no signature at all.
        let key = FederationKey::open(&two.ours.key_store(KIND).unwrap()).unwrap();
        let forged = FederationKey {
            kid: key.kid.clone(),
            ..FederationKey::open(&two.theirs.key_store(KIND).unwrap()).unwrap()
        };
        let forged = forged.sign(&two.claims()).unwrap();
        assert_eq!(two.checked(&forged), Err(AssertionError::Signature));
        let signed = two.signed(|_| ());
        let (signed, _) = signed.rsplit_once('.').unwrap();
        let none = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"none","kid":"{}"}}"#, key.kid));
        let (_, claims) = signed.split_once('.').unwrap();
        for bare in [format!("{signed}."), format!("{none}.{claims}.")] {
            assert!(two.checked(&bare).is_err(), "{bare}");
        }
    }

    #[test]
    fn only_what_can_be_checked_by_is_trusted() {
        let two = two();
        let good = two.ours.trust().unwrap();
        let with = |change: &dyn Fn(&mut Trust)| {
            let mut trust = good.clone();
            change(&mut trust);
            two.theirs
                .add_federated_credential("app", "other", trust, two.subject)
        };
        for bad in [
            with(&|t| t.keys.clear()),
            with(&|t| t.keys[0].x = "AA".into()),
            with(&|t| t.keys[0].crv = "P-384".into()),
            with(&|t| t.issuer = "http://x".into()),
            with(&|t| t.audience = "x".into()),
            with(&|t| t.issuer = issuer(two.theirs.id())),
        ] {
            assert!(bad.is_err());
        }
        with(&|_| ()).unwrap();
        let error = with(&|_| ()).unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
        // They go with the identity, and are in the copy of the catalog.
        let all = || two.theirs.catalog().federated_credentials(None).unwrap();
        assert_eq!(all().len(), 2);
        two.theirs.delete_identity("app").unwrap();
        assert!(all().is_empty());
    }

    #[test]
    fn the_key_is_made_once_and_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let two = two();
        assert_eq!(two.ours.trust().unwrap(), two.ours.trust().unwrap());
        let dir = two.ours.state_dir().join("federation");
        let file = fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(two.ours.trust().is_err());
        assert!(two.ours.assertion(two.subject).sign(SERVICE).is_err());
    }
}
