//! Wrapping and unwrapping of DEKs, and the keys that are derived from a DEK.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{hkdf, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;
use zeroize::Zeroize;

use super::error::EnvelopeError;
use keys::{Dek, KeyError, LockedBytes, with_wiped_call_stack};
use traces::Span;
use vault::{Caller, KeyId, KeyVault, WrapAlgorithm};

/// HKDF `info` of the key that authenticates headers.
const HEADER_KEY: &str = "sealdisk header authentication v1";
/// HKDF `info` of the key that makes check values.
const CHECK_KEY: &str = "sealdisk dek check v1";

/// A DEK wrapped by one version of a vault key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Envelope {
    /// The vault, as `https://NAME.vault.localhost`.
    pub vault_url: String,
    /// The key's name in it.
    pub key_name: String,
    /// The version that wrapped; unwrapping needs this one.
    pub key_version: String,
    /// How it was wrapped.
    #[serde(with = "algorithm")]
    pub algorithm: WrapAlgorithm,
    /// The wrapped DEK.
    #[serde(with = "base64url")]
    pub wrapped: Vec<u8>,
}

impl Envelope {
    /// The key version that unwraps.
    pub fn key_id(&self) -> KeyId {
        KeyId {
            name: self.key_name.clone(),
            version: Some(self.key_version.clone()),
        }
    }

    /// The wrapping key's URL with its version, as Azure writes it.
    pub fn key_url(&self) -> String {
        format!(
            "{}/keys/{}/{}",
            self.vault_url, self.key_name, self.key_version
        )
    }
}

/// Wraps a DEK under `key` of `vault`, in the name of `caller`; of a double one its inner key.
///
/// # Errors
/// The vault's refusal.
pub fn wrap_dek(
    vault: &dyn KeyVault,
    caller: &Caller,
    key: &KeyId,
    dek: &Dek,
) -> Result<Envelope, EnvelopeError> {
    let algorithm = WrapAlgorithm::RsaOaep256;
    let span = traced("wrap DEK", vault, key);
    let _entered = span.enter();
    let wrapped = vault.wrap_key(caller, key, algorithm, dek.expose());
    let wrapped = span.came_to(wrapped, |error| error.code.as_str())?;
    Ok(Envelope {
        vault_url: vault.url().to_owned(),
        key_name: key.name.clone(),
        key_version: wrapped.key_version,
        algorithm,
        wrapped: wrapped.value,
    })
}

/// Begins to use a key of a vault, for traces.
pub(super) fn traced(what: &'static str, vault: &dyn KeyVault, key: &KeyId) -> Span {
    let span = Span::begin(what);
    span.set("sealdisk.vault.url", vault.url().to_owned());
    span.set("sealdisk.key", key.name.clone());
    if let Some(version) = &key.version {
        span.set("sealdisk.key.version", version.clone());
    }
    span
}

/// 32 bytes that a DEK and its layer's id determine and that reveal nothing about the DEK:
/// HMAC-SHA256 of the layer's id under a key that HKDF-SHA256 (RFC 5869) derives from the DEK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DekCheck([u8; 32]);

impl DekCheck {
    /// The check value of `dek` as the DEK of `layer`.
    pub fn new(layer: Uuid, dek: &Dek) -> Self {
        Self(derived_mac(dek, CHECK_KEY, layer.as_bytes()))
    }

    /// Compares in constant time.
    ///
    /// # Errors
    /// [`EnvelopeError::WrongDek`].
    pub fn verify(&self, layer: Uuid, dek: &Dek) -> Result<(), EnvelopeError> {
        let right = Self::new(layer, dek);
        verify_slices_are_equal(&self.0, &right.0).map_err(|_| EnvelopeError::WrongDek { layer })
    }
}

impl Serialize for DekCheck {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        base64url::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for DekCheck {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = base64url::deserialize(deserializer)?;
        let length = bytes.len();
        let array = bytes
            .try_into()
            .map_err(|_| de::Error::custom(format!("a check value is 32 bytes, not {length}")))?;
        Ok(Self(array))
    }
}

/// What authenticates headers: the DEK of their top layer, or the key that is derived from it for that.
pub trait HeaderAuthority {
    /// The authenticator of the header `bytes`.
    fn header_mac(&self, bytes: &[u8]) -> [u8; 32];
}

impl HeaderAuthority for Dek {
    fn header_mac(&self, bytes: &[u8]) -> [u8; 32] {
        derived_mac(self, HEADER_KEY, bytes)
    }
}

/// The key that authenticates the headers of one top layer, in locked memory. It is derived from that
/// layer's DEK, decrypts nothing and leads back to no DEK: whoever has a disk attached keeps it, to
/// write into the header what becomes of the disk while nobody can unwrap the DEK.
pub struct HeaderKey(LockedBytes);

impl HeaderKey {
    /// That of headers whose top layer has this DEK.
    ///
    /// # Errors
    /// [`KeyError::Lock`].
    pub fn of(dek: &Dek) -> Result<Self, KeyError> {
        let mut key = LockedBytes::zeroed(SUBKEY_LEN)?;
        derive(dek, HEADER_KEY, key.as_mut_slice());
        Ok(Self(key))
    }

    /// Writes it into a socket of the next program of this process.
    ///
    /// # Errors
    /// [`KeyError::Transfer`].
    pub fn send(&self, to: &mut impl std::io::Write) -> Result<(), KeyError> {
        to.write_all(self.0.as_slice()).map_err(KeyError::Transfer)
    }

    /// Reads what [`HeaderKey::send`] wrote.
    ///
    /// # Errors
    /// [`KeyError::Transfer`], [`KeyError::Lock`].
    pub fn receive(from: &mut impl std::io::Read) -> Result<Self, KeyError> {
        let mut key = LockedBytes::zeroed(SUBKEY_LEN)?;
        from.read_exact(key.as_mut_slice())
            .map_err(KeyError::Transfer)?;
        Ok(Self(key))
    }
}

impl HeaderAuthority for HeaderKey {
    fn header_mac(&self, bytes: &[u8]) -> [u8; 32] {
        mac(self.0.as_slice(), bytes)
    }
}

/// HMAC-SHA256 of `message` under a subkey of the DEK for one purpose. The DEK itself is only ever an
/// XTS key and HKDF's input.
fn derived_mac(dek: &Dek, purpose: &str, message: &[u8]) -> [u8; 32] {
    let mut key = [0u8; SUBKEY_LEN];
    derive(dek, purpose, &mut key);
    let mac = mac(&key, message);
    key.zeroize();
    mac
}

/// The subkey of a DEK for one purpose, of [`SUBKEY_LEN`] bytes. Of a double DEK it takes both keys.
fn derive(dek: &Dek, purpose: &str, key: &mut [u8]) {
    let info = [purpose.as_bytes()];
    // No salt is this one (RFC 5869 §2.2); the validated module wants it said (SP 800-56C).
    let salt = dek.outer().map_or(&[0; 32][..], Dek::expose);
    let expanded = with_wiped_call_stack(|| {
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(dek.expose());
        // The only error is an output of more than 255 hashes (RFC 5869 §2.3).
        let output = extracted.expand(&info, SubkeyLen);
        output.and_then(|output| output.fill(key))
    });
    assert!(expanded.is_ok(), "HKDF refused 64 bytes");
}

fn mac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    let mut mac = [0; 32];
    mac.copy_from_slice(tag.as_ref());
    mac
}

/// Bytes of a subkey.
const SUBKEY_LEN: usize = 64;

/// Bytes of a subkey, as HKDF is asked for them.
struct SubkeyLen;

impl hkdf::KeyType for SubkeyLen {
    fn len(&self) -> usize {
        SUBKEY_LEN
    }
}

#[cfg(all(test, feature = "fips"))]
mod tests {
    use super::*;
    use keys::is_approved;

    #[test]
    fn the_validated_module_approves() {
        let dek = Dek::generate().unwrap();
        assert!(is_approved(|| derive(
            &dek,
            "purpose",
            &mut [0; SUBKEY_LEN]
        )));
        assert!(is_approved(|| mac(&[7; SUBKEY_LEN], b"message")));
    }
}

/// Bytes as base64url without padding (RFC 4648 §5), as Azure's APIs have them.
mod base64url {
    use super::*;

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        URL_SAFE_NO_PAD.decode(text).map_err(de::Error::custom)
    }
}

/// [`WrapAlgorithm`] by its Azure name.
mod algorithm {
    use super::*;

    const RSA_OAEP_256: &str = "RSA-OAEP-256";

    pub fn serialize<S: Serializer>(
        algorithm: &WrapAlgorithm,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match algorithm {
            WrapAlgorithm::RsaOaep256 => serializer.serialize_str(RSA_OAEP_256),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<WrapAlgorithm, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            RSA_OAEP_256 => Ok(WrapAlgorithm::RsaOaep256),
            other => Err(de::Error::unknown_variant(other, &[RSA_OAEP_256])),
        }
    }
}
