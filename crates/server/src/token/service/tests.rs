use std::path::Path;

use super::*;
use installation::catalog::IdentityOwner;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;

const RESOURCE: &str = "https://vault.localhost:8443";

struct Fixture {
    state: tempfile::TempDir,
    service: TokenService,
    alice: IdentityRecord,
}

impl Fixture {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        Self {
            service: open(state.path()),
            state,
            alice: IdentityRecord {
                object_id: Uuid::from_u128(1),
                client_id: Uuid::from_u128(2),
                owner: IdentityOwner::Named("alice".into()),
                secret_hash: None,
                secret_ends: None,
                is_application: false,
                created: OffsetDateTime::now_utc(),
            },
        }
    }

    fn claims(&self) -> Claims {
        let token = self.service.issue(&self.alice, RESOURCE).unwrap().token;
        Claims::clone(&self.service.verify(&token).unwrap())
    }

    /// Signs anything with the service's own key.
    fn sign<T: Serialize>(&self, header: &Header, claims: &T) -> String {
        let keys = self.service.keys.read().unwrap();
        encode(header, claims, keys.signing().1).unwrap()
    }

    fn header(&self) -> Header {
        let keys = self.service.keys.read().unwrap();
        Header {
            kid: Some(keys.signing().0.into()),
            ..Header::new(Algorithm::ES256)
        }
    }

    fn refusal(&self, token: &str) -> String {
        let error = self.service.verify(token).unwrap_err();
        assert_eq!(error.status, 401);
        error.message
    }
}

fn open(state: &Path) -> TokenService {
    let domains = vec!["vault.localhost".to_owned()];
    TokenService::open(
        &KeyStore::in_directory(&state.join("tokens")),
        Uuid::from_u128(9),
        Duration::from_secs(3600),
        domains,
    )
    .unwrap()
}

#[test]
fn a_token_says_who_for_what_and_until_when() {
    let fixture = Fixture::new();
    let issued = fixture.service.issue(&fixture.alice, RESOURCE).unwrap();
    let claims = fixture.service.verify(&issued.token).unwrap();
    assert_eq!(
        (claims.oid, claims.sub),
        (Uuid::from_u128(1), Uuid::from_u128(1))
    );
    assert_eq!(
        (claims.appid, claims.tid),
        (Uuid::from_u128(2), Uuid::from_u128(9))
    );
    assert_eq!(claims.aud, RESOURCE);
    assert_eq!(claims.exp - claims.iat, 3600);
    assert_eq!(claims.exp, issued.expires_on);
    // Another server of the installation accepts it too; the second time it is remembered.
    let other = open(fixture.state.path());
    other.verify(&issued.token).unwrap();
    assert_eq!(other.verify(&issued.token).unwrap(), claims);
    let foreign = fixture
        .service
        .issue(&fixture.alice, "https://management.azure.com/");
    assert_eq!(foreign.err().unwrap().code, "invalid_resource");
}

#[test]
fn expiry_and_not_before_allow_for_a_small_skew_of_clocks() {
    let fixture = Fixture::new();
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let leeway = i64::try_from(LEEWAY.as_secs()).unwrap();
    let token = |nbf: i64, exp: i64| {
        let claims = Claims {
            nbf,
            exp,
            ..fixture.claims()
        };
        fixture.sign(&fixture.header(), &claims)
    };
    fixture
        .service
        .verify(&token(now - 60, now - leeway / 2))
        .unwrap();
    fixture
        .service
        .verify(&token(now + leeway / 2, now + 60))
        .unwrap();
    let expired = fixture.refusal(&token(now - 60, now - leeway - 5));
    assert!(expired.contains("expired"), "{expired}");
    let early = fixture.refusal(&token(now + leeway + 5, now + 600));
    assert!(early.contains("not valid yet"), "{early}");
}

#[test]
fn a_remembered_token_expires_too() {
    let fixture = Fixture::new();
    let claims = Claims {
        exp: OffsetDateTime::now_utc().unix_timestamp() - 60,
        ..fixture.claims()
    };
    let token = fixture.sign(&fixture.header(), &claims);
    let mut verified = fixture.service.verified.lock().unwrap();
    verified.insert(token.clone(), Arc::new(claims));
    drop(verified);
    assert!(fixture.refusal(&token).contains("expired"));
}

#[test]
fn another_audience_or_issuer_is_refused() {
    let fixture = Fixture::new();
    let audience = Claims {
        aud: "https://management.azure.com".into(),
        ..fixture.claims()
    };
    let token = fixture.sign(&fixture.header(), &audience);
    assert!(fixture.refusal(&token).contains("audience"));
    let issuer = Claims {
        iss: "https://sts.vault.localhost/another/".into(),
        ..fixture.claims()
    };
    let token = fixture.sign(&fixture.header(), &issuer);
    assert!(fixture.refusal(&token).contains("issuer"));
    // Of another installation, whose keys are its own.
    let other = Fixture::new();
    let token = other.service.issue(&other.alice, RESOURCE).unwrap().token;
    assert!(fixture.refusal(&token).contains("signed"));
}

#[test]
fn no_algorithm_but_the_own_one_is_accepted() {
    let fixture = Fixture::new();
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = serde_json::to_value(fixture.claims()).unwrap();
    let kid = fixture.header().kid.unwrap();
    for alg in ["none", "None", "NONE", "ES384", "RS256"] {
        let header = serde_json::json!({"typ": "JWT", "alg": alg, "kid": kid});
        for signature in ["", "AAAA"] {
            let token = format!("{}.{}.{signature}", part(&header), part(&claims));
            fixture.refusal(&token);
        }
    }
    // The public key, which is no secret, as an HMAC secret.
    let path = std::fs::read_dir(fixture.state.path().join("tokens"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let pkcs8 = std::fs::read(path).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8).unwrap();
    let header = Header {
        kid: Some(kid),
        ..Header::new(Algorithm::HS256)
    };
    let secret = EncodingKey::from_secret(pair.public_key().as_ref());
    fixture.refusal(&encode(&header, &claims, &secret).unwrap());
}

#[test]
fn a_forged_or_changed_token_is_refused() {
    let fixture = Fixture::new();
    let claims = fixture.claims();
    let forger =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
    let forger = EncodingKey::from_ec_der(forger.unwrap().as_ref());
    fixture.refusal(&encode(&fixture.header(), &claims, &forger).unwrap());
    let genuine = fixture.sign(&fixture.header(), &claims);
    let mut parts: Vec<&str> = genuine.split('.').collect();
    let other = Claims {
        oid: Uuid::from_u128(3),
        ..claims
    };
    let other = fixture.sign(&fixture.header(), &other);
    parts[1] = other.split('.').nth(1).unwrap();
    fixture.refusal(&parts.join("."));
    let unknown = Header {
        kid: Some("0".repeat(32)),
        ..fixture.header()
    };
    fixture.refusal(&fixture.sign(&unknown, &fixture.claims()));
    let nameless = Header::new(Algorithm::ES256);
    fixture.refusal(&fixture.sign(&nameless, &fixture.claims()));
    for garbage in [
        "",
        ".",
        "..",
        "a.b.c",
        &"x".repeat(100_000),
        &genuine[..genuine.len() - 4],
    ] {
        fixture.refusal(garbage);
    }
}

#[test]
fn a_claim_that_is_missing_is_a_refusal() {
    let fixture = Fixture::new();
    let claims = serde_json::to_value(fixture.claims()).unwrap();
    for name in ["aud", "iss", "exp", "nbf", "oid", "sub"] {
        let mut fewer = claims.clone();
        fewer.as_object_mut().unwrap().remove(name);
        let token = fixture.sign(&fixture.header(), &fewer);
        fixture.refusal(&token);
    }
}

#[test]
fn a_new_key_of_another_server_is_learnt() {
    let fixture = Fixture::new();
    let dir = fixture.state.path().join("tokens");
    let old = std::fs::read_dir(&dir).unwrap().next().unwrap().unwrap();
    let name = old.file_name().into_string().unwrap();
    let (created, kid) = name.split_once('-').unwrap();
    let created: i64 = created.parse().unwrap();
    let period = i64::try_from(crate::token::keys::PERIOD.as_secs()).unwrap();
    let before = fixture
        .service
        .issue(&fixture.alice, RESOURCE)
        .unwrap()
        .token;
    // As if a month had passed; the other server makes a new key.
    std::fs::rename(old.path(), dir.join(format!("{}-{kid}", created - period))).unwrap();
    let other = open(fixture.state.path());
    let token = other.issue(&fixture.alice, RESOURCE).unwrap().token;
    fixture.refusal(&token);
    *fixture.service.reread.lock().unwrap() = Instant::now() - REREAD;
    fixture.service.verify(&token).unwrap();
    fixture.service.verify(&before).unwrap();
}
