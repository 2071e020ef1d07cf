//! The keys that sign tokens: `STATE_DIR/tokens/CREATED-KID.p8`, each a P-256 key as PKCS#8 (mode
//! 0600), CREATED in Unix seconds.
//!
//! The newest key signs. A key is replaced after [`PERIOD`], and its predecessor goes on verifying
//! until no token that it signed can be valid any more. Several servers of one installation share
//! the directory: who meets an unknown key reads it again.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use jsonwebtoken::{DecodingKey, EncodingKey};
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::lifetime::{LEEWAY, MAX_LIFETIME};
use crate::ServerError;
use crate::base64url::to_base64url;
use installation::files::{private_dir, sync_dir};

/// How long a key signs.
pub(super) const PERIOD: Duration = Duration::from_secs(30 * 24 * 3600);

/// The signing keys of an installation, as they were read last.
pub(super) struct SigningKeys {
    dir: PathBuf,
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
    pub(super) fn open(state_dir: &Path) -> Result<Self, ServerError> {
        let dir = state_dir.join("tokens");
        private_dir(&dir)?;
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let mut files = list(&dir)?;
        let newest = files.last().map(|file| file.created);
        if newest.is_none_or(|created| now - created >= seconds(PERIOD)) {
            files.push(make(&dir, now)?);
        }
        retire(&mut files, now)?;
        Self::read(dir, &files)
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

    fn read(dir: PathBuf, files: &[KeyFile]) -> Result<Self, ServerError> {
        let mut verifying = HashMap::new();
        let mut published = Vec::new();
        let mut newest = None;
        for file in files {
            let pkcs8 = read_private(&file.path)?;
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8).map_err(
                |_| ServerError::SigningKey {
                    path: file.path.clone(),
                    why: "it is not a P-256 key in PKCS#8".into(),
                },
            )?;
            let point: &[u8] = pair.public_key().as_ref();
            let public = DecodingKey::from_ec_der(point);
            published.push(jwk(&file.kid, point));
            verifying.insert(file.kid.clone(), public);
            newest = Some((file, EncodingKey::from_ec_der(&pkcs8)));
        }
        let (file, signing) = newest.ok_or_else(|| ServerError::SigningKey {
            path: dir.clone(),
            why: "there is none, although one was just made".into(),
        })?;
        Ok(Self {
            dir,
            kid: file.kid.clone(),
            signing,
            created: file.created,
            verifying,
            published,
        })
    }

    /// Reads the keys again, as [`SigningKeys::open`] does.
    pub(super) fn reopen(&self) -> Result<Self, ServerError> {
        Self::open(self.dir.parent().unwrap_or(Path::new("/")))
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

struct KeyFile {
    created: i64,
    kid: String,
    path: PathBuf,
}

/// The keys, the oldest first; of two made in one second, by id.
fn list(dir: &Path) -> Result<Vec<KeyFile>, ServerError> {
    let fail = |source| ServerError::File {
        what: "read the directory",
        path: dir.into(),
        source,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        files.extend(parse_name(&path));
    }
    files.sort_by(|a, b| (a.created, &a.kid).cmp(&(b.created, &b.kid)));
    Ok(files)
}

fn parse_name(path: &Path) -> Option<KeyFile> {
    let name = path.file_name()?.to_str()?.strip_suffix(".p8")?;
    let (created, kid) = name.split_once('-')?;
    Some(KeyFile {
        created: created.parse().ok()?,
        kid: kid.into(),
        path: path.into(),
    })
}

/// Written under another name, synced and renamed, so that nobody reads half a key.
fn make(dir: &Path, now: i64) -> Result<KeyFile, ServerError> {
    let kid = Uuid::new_v4().simple().to_string();
    let path = dir.join(format!("{now}-{kid}.p8"));
    let staging = dir.join(format!("{kid}.new"));
    let pkcs8 =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(|_| ServerError::SigningKey {
                path: path.clone(),
                why: "the random generator failed".into(),
            })?;
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&staging)
        .and_then(|mut file| {
            file.write_all(pkcs8.as_ref())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&staging, &path))
        .and_then(|()| sync_dir(dir));
    written.map_err(|source| ServerError::File {
        what: "write",
        path: path.clone(),
        source,
    })?;
    Ok(KeyFile {
        created: now,
        kid,
        path,
    })
}

/// Deletes the keys whose successor has signed for longer than any token lives.
fn retire(files: &mut Vec<KeyFile>, now: i64) -> Result<(), ServerError> {
    let overlap = seconds(MAX_LIFETIME) + 2 * seconds(LEEWAY);
    while let [oldest, successor, ..] = files.as_slice() {
        if now - successor.created <= overlap {
            break;
        }
        match fs::remove_file(&oldest.path) {
            // Another server was faster.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(ServerError::File {
                    what: "delete",
                    path: oldest.path.clone(),
                    source,
                });
            }
            Ok(()) => {}
        }
        files.remove(0);
    }
    Ok(())
}

/// Reads a key that nobody else may read: who has it can sign tokens in anybody's name.
fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, ServerError> {
    let fail = |source| ServerError::File {
        what: "read",
        path: path.into(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() != own || metadata.mode() & 0o077 != 0 {
        return Err(ServerError::SigningKey {
            path: path.into(),
            why: format!(
                "others than user {own} can read it or own it; delete it (tokens signed with it \
                 are refused then), and a new one is made"
            ),
        });
    }
    read_all(file).map_err(fail)
}

/// A P-256 key is about 140 bytes.
fn read_all(file: File) -> io::Result<Zeroizing<Vec<u8>>> {
    use std::io::Read;
    let mut bytes = Zeroizing::new(Vec::with_capacity(1024));
    file.take(1024).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(dir: &Path) -> Vec<String> {
        list(dir).unwrap().into_iter().map(|f| f.kid).collect()
    }

    #[test]
    fn the_first_open_makes_a_key_and_the_next_finds_it() {
        let state = tempfile::tempdir().unwrap();
        let first = SigningKeys::open(state.path()).unwrap();
        let second = SigningKeys::open(state.path()).unwrap();
        assert_eq!(first.kid, second.kid);
        assert!(!first.is_due());
        let mode = fs::metadata(&list(&first.dir).unwrap()[0].path).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_old_key_verifies_until_its_last_token_has_expired() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("tokens");
        private_dir(&dir).unwrap();
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let old = make(&dir, now - seconds(PERIOD)).unwrap();
        let keys = SigningKeys::open(state.path()).unwrap();
        assert_ne!(keys.kid, old.kid, "a new one signs");
        assert!(keys.verifying(&old.kid).is_some());
        // The successor has signed for two days.
        let successor = list(&dir).unwrap().pop().unwrap();
        let older = now - 2 * 24 * 3600;
        let path = dir.join(format!("{older}-{}.p8", successor.kid));
        fs::rename(&successor.path, path).unwrap();
        let keys = SigningKeys::open(state.path()).unwrap();
        assert_eq!(keys.kid, successor.kid);
        assert!(keys.verifying(&old.kid).is_none());
        assert_eq!(names(&dir), [successor.kid]);
    }

    #[test]
    fn an_exposed_or_damaged_key_is_refused() {
        let state = tempfile::tempdir().unwrap();
        SigningKeys::open(state.path()).unwrap();
        let path = list(&state.path().join("tokens")).unwrap()[0].path.clone();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = SigningKeys::open(state.path()).err().unwrap();
        assert!(error.to_string().contains("others"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"no key").unwrap();
        let error = SigningKeys::open(state.path()).err().unwrap();
        assert!(error.to_string().contains("PKCS#8"), "{error}");
    }
}
