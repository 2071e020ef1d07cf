//! The keys that sign tokens: `CREATED-KID.p8` among the keys that the servers of an installation share, each a P-256 key
//! as PKCS#8, CREATED in Unix seconds.
//!
//! The newest key signs. A key is replaced after [`PERIOD`], and its predecessor goes on verifying
//! until no token that it signed can be valid any more. Several servers of one installation share
//! the keys: who meets an unknown one reads them again.

use std::collections::HashMap;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use jsonwebtoken::{DecodingKey, EncodingKey};
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::lifetime::{LEEWAY, MAX_LIFETIME};
use crate::ServerError;
use crate::base64url::to_base64url;
use installation::{KeyStore, OpenKeys};

/// How long a key signs.
pub(super) const PERIOD: Duration = Duration::from_secs(30 * 24 * 3600);

/// The signing keys of an installation, as they were read last.
pub(super) struct SigningKeys {
    store: KeyStore,
    /// The newest.
    kid: String,
    signing: EncodingKey,
    created: i64,
    verifying: HashMap<String, DecodingKey>,
    published: Vec<Value>,
}

impl SigningKeys {
    /// Reads the keys, makes one when there is none or the newest has served its time, and deletes
    /// those that nothing needs any more.
    pub(super) fn open(store: &KeyStore) -> Result<Self, ServerError> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        // Of several servers that find none, one makes it.
        let keys = store.open()?;
        let mut found = list(&keys)?;
        let newest = found.last().map(|key| key.created);
        if newest.is_none_or(|created| now - created >= seconds(PERIOD)) {
            found.push(make(store, &keys, now)?);
        }
        retire(&keys, &mut found, now)?;
        Self::read(store, &keys, &found)
    }

    /// The key that signs, and its id.
    pub(super) fn signing(&self) -> (&str, &EncodingKey) {
        (&self.kid, &self.signing)
    }

    /// Whether the newest key has served its time.
    pub(super) fn is_due(&self) -> bool {
        OffsetDateTime::now_utc().unix_timestamp() - self.created >= seconds(PERIOD)
    }

    /// The public key of that id.
    pub(super) fn verifying(&self, kid: &str) -> Option<&DecodingKey> {
        self.verifying.get(kid)
    }

    /// The public keys as a JWK set (RFC 7517).
    pub(super) fn published(&self) -> Value {
        json!({"keys": self.published})
    }

    fn read(store: &KeyStore, keys: &OpenKeys, found: &[Key]) -> Result<Self, ServerError> {
        let mut verifying = HashMap::new();
        let mut published = Vec::new();
        let mut newest = None;
        for key in found {
            let unusable = |why: &str| ServerError::SigningKey {
                path: store.place_of(&key.name),
                why: why.into(),
            };
            let pkcs8 = keys
                .read(&key.name)?
                .ok_or_else(|| unusable("it is not there any more"))?;
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8)
                .map_err(|_| unusable("it is not a P-256 key in PKCS#8"))?;
            let point: &[u8] = pair.public_key().as_ref();
            let public = DecodingKey::from_ec_der(point);
            published.push(jwk(&key.kid, point));
            verifying.insert(key.kid.clone(), public);
            newest = Some((key, EncodingKey::from_ec_der(&pkcs8)));
        }
        let (key, signing) = newest.ok_or_else(|| ServerError::SigningKey {
            path: store.place_of(""),
            why: "there is none, although one was just made".into(),
        })?;
        Ok(Self {
            store: store.clone(),
            kid: key.kid.clone(),
            signing,
            created: key.created,
            verifying,
            published,
        })
    }

    /// Reads the keys again, as [`SigningKeys::open`] does.
    pub(super) fn reopen(&self) -> Result<Self, ServerError> {
        Self::open(&self.store)
    }
}

/// A point of P-256, which is not compressed: 4, and two coordinates.
fn jwk(kid: &str, point: &[u8]) -> Value {
    let coordinates = point.get(1..).unwrap_or_default();
    let (x, y) = coordinates.split_at(coordinates.len() / 2);
    json!({
        "kty": "EC",
        "crv": "P-256",
        "use": "sig",
        "alg": "ES256",
        "kid": kid,
        "x": to_base64url(x),
        "y": to_base64url(y),
    })
}

struct Key {
    created: i64,
    kid: String,
    name: String,
}

/// The keys, the oldest first; of two made in one second, by id.
fn list(keys: &OpenKeys) -> Result<Vec<Key>, ServerError> {
    let names = keys.names()?.into_iter();
    let mut found: Vec<Key> = names.filter_map(parse_name).collect();
    found.sort_by(|a, b| (a.created, &a.kid).cmp(&(b.created, &b.kid)));
    Ok(found)
}

fn parse_name(name: String) -> Option<Key> {
    let (created, kid) = name.strip_suffix(".p8")?.split_once('-')?;
    Some(Key {
        created: created.parse().ok()?,
        kid: kid.into(),
        name,
    })
}

fn make(store: &KeyStore, keys: &OpenKeys, now: i64) -> Result<Key, ServerError> {
    let kid = Uuid::new_v4().simple().to_string();
    let name = format!("{now}-{kid}.p8");
    let pkcs8 =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(|_| ServerError::SigningKey {
                path: store.place_of(&name),
                why: "the random generator failed".into(),
            })?;
    keys.put(&name, pkcs8.as_ref(), true)?;
    Ok(Key {
        created: now,
        kid,
        name,
    })
}

/// Deletes the keys whose successor has signed for longer than any token lives.
fn retire(keys: &OpenKeys, found: &mut Vec<Key>, now: i64) -> Result<(), ServerError> {
    let overlap = seconds(MAX_LIFETIME) + 2 * seconds(LEEWAY);
    while let [oldest, successor, ..] = found.as_slice() {
        if now - successor.created <= overlap {
            break;
        }
        keys.remove(&oldest.name)?;
        found.remove(0);
    }
    Ok(())
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::{Path, PathBuf};

    use super::*;

    fn store(dir: &Path) -> KeyStore {
        KeyStore::in_directory(&dir.join("tokens"))
    }

    fn kids(store: &KeyStore) -> Vec<String> {
        let found = list(&store.open().unwrap()).unwrap();
        found.into_iter().map(|key| key.kid).collect()
    }

    fn the_file(dir: &Path) -> PathBuf {
        let mut files = fs::read_dir(dir.join("tokens")).unwrap();
        files.next().unwrap().unwrap().path()
    }

    #[test]
    fn the_first_open_makes_a_key_and_the_next_finds_it() {
        let state = tempfile::tempdir().unwrap();
        let first = SigningKeys::open(&store(state.path())).unwrap();
        let second = SigningKeys::open(&store(state.path())).unwrap();
        assert_eq!(first.kid, second.kid);
        assert!(!first.is_due());
        let mode = fs::metadata(the_file(state.path())).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn servers_that_start_at_once_make_one_key() {
        let state = tempfile::tempdir().unwrap();
        let opened = std::thread::scope(|scope| {
            let opening = [(); 4]
                .map(|()| scope.spawn(|| SigningKeys::open(&store(state.path())).unwrap().kid));
            opening.map(|opening| opening.join().unwrap())
        });
        assert!(opened.iter().all(|kid| *kid == opened[0]), "{opened:?}");
    }

    #[test]
    fn an_old_key_verifies_until_its_last_token_has_expired() {
        let state = tempfile::tempdir().unwrap();
        let store = store(state.path());
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let old = make(&store, &store.open().unwrap(), now - seconds(PERIOD)).unwrap();
        let keys = SigningKeys::open(&store).unwrap();
        assert_ne!(keys.kid, old.kid, "a new one signs");
        assert!(keys.verifying(&old.kid).is_some());
        // The successor has signed for two days.
        let successor = list(&store.open().unwrap()).unwrap().pop().unwrap();
        let older = now - 2 * 24 * 3600;
        fs::rename(
            store.place_of(&successor.name),
            store.place_of(&format!("{older}-{}.p8", successor.kid)),
        )
        .unwrap();
        let keys = SigningKeys::open(&store).unwrap();
        assert_eq!(keys.kid, successor.kid);
        assert!(keys.verifying(&old.kid).is_none());
        assert_eq!(kids(&store), [successor.kid]);
    }

    #[test]
    fn an_exposed_or_damaged_key_is_refused() {
        let state = tempfile::tempdir().unwrap();
        let store = store(state.path());
        SigningKeys::open(&store).unwrap();
        let path = the_file(state.path());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = SigningKeys::open(&store).err().unwrap();
        assert!(error.to_string().contains("others"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"no key").unwrap();
        let error = SigningKeys::open(&store).err().unwrap();
        assert!(error.to_string().contains("PKCS#8"), "{error}");
    }
}
