//! RSA keys: reading them in (by `rsa`), making and using them (by AWS-LC, in constant time).

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeySize as AwsKeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm,
    OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey,
    PublicKeyComponents,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::pkcs1::DecodeRsaPrivateKey;
use rsa::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, spki};
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use rsa::{BoxedUint, PrivateKey};
use serde::Deserialize;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{EncryptionAlgorithm, VaultError, VaultErrorCode};
use keys::{LockedBytes, SparePages};

/// Longest number of a JSON Web Key that is read: the modulus of RSA-4096 in base64url, with room
/// for a leading zero.
const JWK_NUMBER_LEN: usize = 700;

/// The sizes of RSA keys that a vault holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySize {
    /// 2048 bits.
    Rsa2048,
    /// 3072 bits.
    Rsa3072,
    /// 4096 bits.
    Rsa4096,
}

impl KeySize {
    /// Bits of the modulus.
    pub fn bits(self) -> u32 {
        match self {
            Self::Rsa2048 => 2048,
            Self::Rsa3072 => 3072,
            Self::Rsa4096 => 4096,
        }
    }
}

impl KeySize {
    /// The size of a key with that modulus, big-endian.
    pub(super) fn of_modulus(n: &[u8]) -> Result<Self, VaultError> {
        let zeros = n.iter().take_while(|&&byte| byte == 0).count();
        let bits = (n.len() - zeros) * 8;
        Self::try_from(u32::try_from(bits).unwrap_or(u32::MAX))
    }
}

impl TryFrom<u32> for KeySize {
    type Error = VaultError;

    fn try_from(bits: u32) -> Result<Self, VaultError> {
        [Self::Rsa2048, Self::Rsa3072, Self::Rsa4096]
            .into_iter()
            .find(|size| size.bits() == bits)
            .ok_or_else(|| {
                bad(format!(
                    "an RSA key of {bits} bits is not accepted; use 2048, 3072 or 4096"
                ))
            })
    }
}

impl From<KeySize> for AwsKeySize {
    fn from(size: KeySize) -> Self {
        match size {
            KeySize::Rsa2048 => Self::Rsa2048,
            KeySize::Rsa3072 => Self::Rsa3072,
            KeySize::Rsa4096 => Self::Rsa4096,
        }
    }
}

/// An RSA private key in memory; it is zeroed on drop.
pub struct RsaKey {
    /// PKCS#8.
    der: Zeroizing<Vec<u8>>,
    n: Vec<u8>,
    e: Vec<u8>,
}

/// The numbers of an RSA private key, big-endian; they are zeroed on drop.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct RsaComponents {
    /// Modulus.
    pub n: Vec<u8>,
    /// Public exponent.
    pub e: Vec<u8>,
    /// Private exponent.
    pub d: Vec<u8>,
    /// First prime.
    pub p: Vec<u8>,
    /// Second prime.
    pub q: Vec<u8>,
    /// d mod (p - 1).
    pub dp: Vec<u8>,
    /// d mod (q - 1).
    pub dq: Vec<u8>,
    /// 1/q mod p.
    pub qi: Vec<u8>,
}

/// An RSA private key as a JSON Web Key (RFC 7518 §6.3.2); it is zeroed on drop.
#[derive(Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct PrivateJwk {
    kty: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    #[serde(default)]
    d: String,
    #[serde(default)]
    p: String,
    #[serde(default)]
    q: String,
    #[serde(default)]
    key_ops: Option<Vec<String>>,
}

/// `kty` of a key that is to be in hardware only; RFC 7518 has no such type.
const HARDWARE_KTY: &str = "RSA-HSM";

impl PrivateJwk {
    /// What it says that the key may be used for.
    pub fn key_ops(&self) -> Option<&[String]> {
        self.key_ops.as_deref()
    }

    /// Whether it is of Azure's type for keys that are in hardware.
    pub fn is_for_hardware(&self) -> bool {
        self.kty == HARDWARE_KTY
    }
}

/// A private key that is brought in.
pub enum KeyMaterial<'a> {
    /// PEM, PKCS#8 or PKCS#1 without a password.
    Pem(&'a str),
    /// A JSON Web Key.
    Jwk(&'a PrivateJwk),
}

impl RsaKey {
    /// A new key with the public exponent 65537.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn generate(size: KeySize) -> Result<Self, VaultError> {
        let failed = || VaultError::new(VaultErrorCode::Internal, "an RSA key could not be made");
        let key = PrivateDecryptingKey::generate(size.into()).map_err(|_| failed())?;
        let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&key).map_err(|_| failed())?;
        let public = AsDer::<PublicKeyX509Der<'_>>::as_der(&key.public_key());
        let public = public.map_err(|_| failed())?;
        let public = rsa::PublicKey::from_public_key_der(public.as_ref())
            .map_err(|e| internal("a new key could not be read", e))?;
        Ok(Self {
            der: Zeroizing::new(der.as_ref().to_vec()),
            n: public.n_bytes().into_vec(),
            e: public.e_bytes().into_vec(),
        })
    }

    /// Reads a key that is brought in and checks that it is one that a vault holds.
    ///
    /// # Errors
    /// [`VaultErrorCode::BadParameter`].
    pub fn read(material: &KeyMaterial<'_>) -> Result<Self, VaultError> {
        match material {
            KeyMaterial::Pem(text) => Self::from_pem(text),
            KeyMaterial::Jwk(jwk) => Self::from_jwk(jwk),
        }
    }

    /// Reads an unencrypted PEM, PKCS#8 (`PRIVATE KEY`) or PKCS#1 (`RSA PRIVATE KEY`). Text around
    /// it, as `openssl pkcs12` writes it, is passed over.
    fn from_pem(text: &str) -> Result<Self, VaultError> {
        let start = text
            .find("-----BEGIN ")
            .ok_or_else(|| bad("this is no PEM file: there is no '-----BEGIN …-----' line"))?;
        let text = &text[start..];
        let label = text["-----BEGIN ".len()..]
            .split_once("-----")
            .map_or("", |(label, _)| label);
        if label == "ENCRYPTED PRIVATE KEY" || text.contains("Proc-Type: 4,ENCRYPTED") {
            return Err(bad(
                "the PEM file is protected by a password; decrypt it first with `openssl pkey -in \
                 FILE -out PLAIN`, on a tmpfs",
            ));
        }
        let malformed = |e: &dyn std::fmt::Display| bad(format!("the RSA key is malformed: {e}"));
        let key = match label {
            "PRIVATE KEY" => PrivateKey::from_pkcs8_pem(text).map_err(|e| match e {
                rsa::pkcs8::Error::PublicKey(spki::Error::OidUnknown { .. }) => {
                    bad("the PEM file holds a private key of another kind; an RSA key is needed")
                }
                e => malformed(&e),
            })?,
            "RSA PRIVATE KEY" => PrivateKey::from_pkcs1_pem(text).map_err(|e| malformed(&e))?,
            other => {
                return Err(bad(format!(
                    "the PEM file holds '{other}'; an RSA private key is needed, as PKCS#8 \
                     ('PRIVATE KEY') or PKCS#1 ('RSA PRIVATE KEY')"
                )));
            }
        };
        Self::checked(&key)
    }

    fn from_jwk(jwk: &PrivateJwk) -> Result<Self, VaultError> {
        if jwk.kty != "RSA" && !jwk.is_for_hardware() {
            return Err(bad(
                "the JSON Web Key is of another kind; one with 'kty' 'RSA' is needed",
            ));
        }
        let number = |name: &str, text: &str| {
            if text.len() > JWK_NUMBER_LEN {
                return Err(bad(format!("'{name}' of the JSON Web Key is too long")));
            }
            // Some write the padding that base64url of RFC 7515 §2 does not have.
            let bytes = URL_SAFE_NO_PAD
                .decode(text.trim_end_matches('='))
                .map(Zeroizing::new)
                .map_err(|_| bad(format!("'{name}' of the JSON Web Key is no base64url")))?;
            if bytes.is_empty() {
                return Err(bad(format!("the JSON Web Key has no '{name}'")));
            }
            Ok(BoxedUint::from_be_slice_vartime(&bytes))
        };
        let (n, e, d) = (
            number("n", &jwk.n)?,
            number("e", &jwk.e)?,
            number("d", &jwk.d)?,
        );
        let primes = match (jwk.p.is_empty(), jwk.q.is_empty()) {
            // RFC 7518 §6.3.2 allows the primes to be left out; they are computed then.
            (true, true) => Vec::new(),
            _ => vec![number("p", &jwk.p)?, number("q", &jwk.q)?],
        };
        KeySize::try_from(n.bit_width_vartime())?;
        let key = PrivateKey::from_components(n, e, d, primes)
            .map_err(|e| bad(format!("the RSA key is malformed: {e}")))?;
        Self::checked(&key)
    }

    fn checked(key: &PrivateKey) -> Result<Self, VaultError> {
        KeySize::try_from(key.n().bit_width_vartime())?;
        key.validate()
            .map_err(|e| bad(format!("the RSA key is inconsistent: {e}")))?;
        let der = key
            .to_pkcs8_der()
            .map_err(|e| internal("a key could not be encoded", e))?
            .to_bytes();
        PrivateDecryptingKey::from_pkcs8(&der)
            .map_err(|e| bad(format!("the RSA key is not one that can be used: {e}")))?;
        Ok(Self {
            der,
            n: key.n_bytes().into_vec(),
            e: key.e_bytes().into_vec(),
        })
    }

    /// Modulus and public exponent, big-endian.
    pub fn public_parts(&self) -> (&[u8], &[u8]) {
        (&self.n, &self.e)
    }

    /// The private key as PKCS#8 DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// All its numbers, for a device that takes a key as such.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn components(&self) -> Result<RsaComponents, VaultError> {
        let key = PrivateKey::from_pkcs8_der(&self.der)
            .map_err(|e| internal("a key could not be read", e))?;
        let [p, q] = key.primes() else {
            return Err(bad("an RSA key of more than two primes is not accepted"));
        };
        let bytes = |number: Option<&BoxedUint>| {
            number
                .map(|number| number.to_be_bytes().into_vec())
                .ok_or_else(|| bad("the RSA key is incomplete"))
        };
        Ok(RsaComponents {
            n: self.n.clone(),
            e: self.e.clone(),
            d: bytes(Some(key.d()))?,
            p: bytes(Some(p))?,
            q: bytes(Some(q))?,
            dp: bytes(key.dp())?,
            dq: bytes(key.dq())?,
            qi: bytes(key.qinv().map(|inverse| inverse.retrieve()).as_ref())?,
        })
    }
}

/// Pages for what is unwrapped.
static SPARE: SparePages = SparePages::new(16);

/// An RSA private key that AWS-LC decrypts with.
pub(super) struct DecryptingKey(OaepPrivateDecryptingKey);

impl DecryptingKey {
    /// Reads PKCS#8 DER that was checked when it was stored.
    pub fn from_der(der: &[u8]) -> Result<Self, VaultError> {
        let key = PrivateDecryptingKey::from_pkcs8(der)
            .map_err(|e| internal("a stored key is malformed", e))?;
        OaepPrivateDecryptingKey::new(key)
            .map(Self)
            .map_err(|e| internal("a stored key cannot be used", e))
    }

    /// RSA-OAEP decryption (RFC 8017 §7.1.2) with blinding, into locked memory. Whatever is wrong
    /// with `ciphertext`, the error is the same, so that it cannot serve as a padding oracle
    /// (RFC 8017 §7.1.2, note).
    pub fn decrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        ciphertext: &[u8],
    ) -> Result<LockedBytes, VaultError> {
        let unlocked = |e| internal("there is no memory for the unwrapped key", e);
        let mut secret = SPARE.zeroed(self.0.min_output_size()).map_err(unlocked)?;
        let len = self
            .0
            .decrypt(oaep(algorithm), ciphertext, secret.as_mut_slice(), None)
            .map_err(|_| unwrap_failed())?
            .len();
        secret.truncate(len);
        Ok(secret)
    }
}

/// RSA-OAEP encryption (RFC 8017 §7.1.1) under a public key, big-endian.
pub(super) fn encrypt(
    n: &[u8],
    e: &[u8],
    algorithm: EncryptionAlgorithm,
    secret: &[u8],
) -> Result<Vec<u8>, VaultError> {
    let malformed =
        || VaultError::new(VaultErrorCode::Internal, "a stored public key is malformed");
    let key: PublicEncryptingKey = PublicKeyComponents { n, e }
        .try_into()
        .map_err(|_| malformed())?;
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| malformed())?;
    let limit = key.max_plaintext_size(oaep(algorithm));
    if secret.len() > limit {
        return Err(bad(format!(
            "a secret of {} bytes is too long to wrap, the key takes {limit}",
            secret.len()
        )));
    }
    let mut wrapped = vec![0; key.ciphertext_size()];
    key.encrypt(oaep(algorithm), secret, &mut wrapped, None)
        .map_err(|_| VaultError::new(VaultErrorCode::Internal, "wrapping failed"))?;
    Ok(wrapped)
}

/// What every wrapped value gets that a key version cannot unwrap, whatever is wrong with it.
pub(super) fn unwrap_failed() -> VaultError {
    VaultError::new(
        VaultErrorCode::UnwrapFailed,
        "the wrapped key cannot be unwrapped by this key version",
    )
}

fn oaep(algorithm: EncryptionAlgorithm) -> &'static OaepAlgorithm {
    match algorithm {
        EncryptionAlgorithm::RsaOaep256 => &OAEP_SHA256_MGF1SHA256,
        EncryptionAlgorithm::RsaOaep => &OAEP_SHA1_MGF1SHA1,
    }
}

fn bad(message: impl Into<String>) -> VaultError {
    VaultError::new(VaultErrorCode::BadParameter, message)
}

fn internal(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> VaultError {
    VaultError::caused(VaultErrorCode::Internal, what, source)
}

#[cfg(test)]
mod tests;
