//! RSA keys: making, importing, wrapping and unwrapping.

use rsa::pkcs1::DecodeRsaPrivateKey;
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey, spki};
use rsa::traits::PublicKeyParts;
use rsa::{PrivateKey, PublicKey};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::{VaultError, VaultErrorCode};
use crate::keys::LockedBytes;

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

/// An RSA private key in memory; it is zeroed on drop.
pub(super) struct RsaKey(PrivateKey);

impl RsaKey {
    /// A new key with the public exponent 65537.
    pub fn generate(size: KeySize) -> Result<Self, VaultError> {
        let bits = size.bits() as usize;
        PrivateKey::new(&mut getrandom::SysRng, bits)
            .map(Self)
            .map_err(|e| internal("an RSA key could not be made", e))
    }

    /// Reads an unencrypted PEM, PKCS#8 (`PRIVATE KEY`) or PKCS#1 (`RSA PRIVATE KEY`). Text around
    /// it, as `openssl pkcs12` writes it, is passed over.
    pub fn from_pem(text: &str) -> Result<Self, VaultError> {
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
        let key = Self(key);
        KeySize::try_from(key.bits())?;
        key.0
            .validate()
            .map_err(|e| bad(format!("the RSA key is inconsistent: {e}")))?;
        Ok(key)
    }

    /// Reads what [`RsaKey::to_der`] wrote.
    pub fn from_der(der: &[u8]) -> Result<Self, VaultError> {
        PrivateKey::from_pkcs8_der(der)
            .map(Self)
            .map_err(|e| internal("a stored key is malformed", e))
    }

    /// The private key as PKCS#8 DER.
    pub fn to_der(&self) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let der = self
            .0
            .to_pkcs8_der()
            .map_err(|e| internal("a key could not be encoded", e))?;
        Ok(der.to_bytes())
    }

    /// Bits of the modulus.
    pub fn bits(&self) -> u32 {
        self.0.n().bit_width_vartime()
    }

    /// Modulus and public exponent, big-endian.
    pub fn public_parts(&self) -> (Vec<u8>, Vec<u8>) {
        (self.0.n_bytes().into_vec(), self.0.e_bytes().into_vec())
    }

    /// RSA-OAEP-256 decryption (RFC 8017 §7.1.2) with blinding, into locked memory. Whatever is
    /// wrong with `wrapped`, the error is the same, so that it cannot serve as a padding oracle
    /// (RFC 8017 §7.1.2, note).
    pub fn unwrap(&self, wrapped: &[u8]) -> Result<LockedBytes, VaultError> {
        let mut plain = self.0.oaep_decrypt::<Sha256>(wrapped).map_err(|_| {
            VaultError::new(
                VaultErrorCode::UnwrapFailed,
                "the wrapped key cannot be unwrapped by this key version",
            )
        })?;
        let locked = LockedBytes::zeroed(plain.len()).map(|mut locked| {
            locked.as_mut_slice().copy_from_slice(&plain);
            locked
        });
        plain.zeroize();
        locked.map_err(|e| internal("there is no memory for the unwrapped key", e))
    }
}

/// RSA-OAEP-256 encryption (RFC 8017 §7.1.1) under a public key.
pub(super) fn wrap(n: &[u8], e: &[u8], secret: &[u8]) -> Result<Vec<u8>, VaultError> {
    let number = rsa::BoxedUint::from_be_slice_vartime;
    let key = PublicKey::new(number(n), number(e))
        .map_err(|e| internal("a stored public key is malformed", e))?;
    // k - 2 hLen - 2 (RFC 8017 §7.1.1, step 1b).
    let limit = key.size().saturating_sub(2 * 32 + 2);
    if secret.len() > limit {
        return Err(bad(format!(
            "a secret of {} bytes is too long to wrap, the key takes {limit}",
            secret.len()
        )));
    }
    key.oaep_encrypt::<Sha256>(secret)
        .map_err(|e| internal("wrapping failed", e))
}

fn bad(message: impl Into<String>) -> VaultError {
    VaultError::new(VaultErrorCode::BadParameter, message)
}

fn internal(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> VaultError {
    VaultError::caused(VaultErrorCode::Internal, what, source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsa::pkcs1::EncodeRsaPrivateKey;
    use rsa::pkcs8::LineEnding;

    #[test]
    fn wraps_and_unwraps_and_every_bad_input_gives_the_same_error() {
        let key = RsaKey::generate(KeySize::Rsa2048).unwrap();
        let (n, e) = key.public_parts();
        let wrapped = wrap(&n, &e, &[5; 64]).unwrap();
        assert_eq!(wrapped.len(), 256);
        assert_ne!(
            wrapped,
            wrap(&n, &e, &[5; 64]).unwrap(),
            "OAEP is randomised"
        );
        let again = RsaKey::from_der(&key.to_der().unwrap()).unwrap();
        assert_eq!(again.unwrap(&wrapped).unwrap().as_slice(), &[5; 64]);

        let mut changed = wrapped.clone();
        changed[100] ^= 1;
        let bad = [
            changed,
            wrapped[1..].to_vec(),
            vec![0; 256],
            vec![0xff; 256],
            Vec::new(),
        ];
        let messages: std::collections::BTreeSet<String> = bad
            .iter()
            .map(|b| {
                let error = key.unwrap(b).err().unwrap();
                assert_eq!(error.code, VaultErrorCode::UnwrapFailed);
                assert!(error.source.is_none());
                error.message
            })
            .collect();
        assert_eq!(messages.len(), 1, "{messages:?}");
        let error = wrap(&n, &e, &[0; 191]).unwrap_err();
        assert_eq!(error.code, VaultErrorCode::BadParameter);
        wrap(&n, &e, &[0; 190]).unwrap();
    }

    #[test]
    fn imports_both_pem_forms_and_refuses_what_is_not_one() {
        let key = RsaKey::generate(KeySize::Rsa2048).unwrap();
        let pkcs8 = key.0.to_pkcs8_pem(LineEnding::LF).unwrap();
        let pkcs1 = key.0.to_pkcs1_pem(LineEnding::LF).unwrap();
        let with_text = format!("Bag Attributes\n  x: y\n{}", *pkcs8);
        for pem in [pkcs8.as_str(), pkcs1.as_str(), &with_text] {
            let imported = RsaKey::from_pem(pem).unwrap();
            assert_eq!(imported.public_parts(), key.public_parts());
        }
        let refused = |pem: &str, why: &str| {
            let error = RsaKey::from_pem(pem).err().unwrap();
            assert_eq!(error.code, VaultErrorCode::BadParameter);
            assert!(error.message.contains(why), "{error} for {why}");
        };
        refused("", "no PEM");
        refused(&pkcs8[..pkcs8.len() / 2], "malformed");
        refused(
            &pkcs8.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
            "password",
        );
        refused(
            &pkcs8.replace("PRIVATE KEY", "CERTIFICATE"),
            "'CERTIFICATE'",
        );
        refused(
            &pkcs8.replace("PRIVATE KEY", "EC PRIVATE KEY"),
            "'EC PRIVATE KEY'",
        );
    }

    #[test]
    fn a_small_key_is_refused() {
        let small = PrivateKey::new(&mut getrandom::SysRng, 1024).unwrap();
        let pem = small.to_pkcs8_pem(LineEnding::LF).unwrap();
        let error = RsaKey::from_pem(&pem).err().unwrap();
        assert!(error.message.contains("1024 bits"), "{error}");
    }
}
