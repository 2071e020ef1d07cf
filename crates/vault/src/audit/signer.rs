//! The key that signs heads and checkpoints.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair,
    UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::AuditError;
use super::encoding::encoded;

/// What a signature is about. It is the start of the signed message, so that no signature of one
/// kind passes as one of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Head,
    /// A head that covers counters too.
    CountingHead,
    Checkpoint,
    Segment,
}

impl Purpose {
    fn context(self) -> &'static [u8] {
        match self {
            Self::Head => b"sealdisk audit head v1\0",
            Self::CountingHead => b"sealdisk audit head v2\0",
            Self::Checkpoint => b"sealdisk audit checkpoint v1\0",
            Self::Segment => b"sealdisk audit segment v1\0",
        }
    }
}

/// An ECDSA P-256 key pair; AWS-LC wipes it when it is dropped.
pub(super) struct Signer(EcdsaKeyPair);

impl Signer {
    /// A new key, and its PKCS#8 form for storing.
    pub fn generate() -> Result<(Self, Zeroizing<Vec<u8>>), AuditError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map_err(|_| AuditError::Sign)?;
        let stored = pair.to_pkcs8v1().map_err(|_| AuditError::Sign)?;
        let stored = Zeroizing::new(stored.as_ref().to_vec());
        Ok((Self(pair), stored))
    }

    /// Reads the PKCS#8 form.
    pub fn from_stored(stored: &[u8]) -> Result<Self, AuditError> {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, stored)
            .map(Self)
            .map_err(|_| AuditError::tampered("its signing key is malformed"))
    }

    pub fn sign(&self, purpose: Purpose, message: &[u8]) -> Result<Vec<u8>, AuditError> {
        let message = [purpose.context(), message].concat();
        let signature = self
            .0
            .sign(&SystemRandom::new(), &message)
            .map_err(|_| AuditError::Sign)?;
        Ok(signature.as_ref().to_vec())
    }

    pub fn public_key(&self) -> Result<PublicKey, AuditError> {
        let der = AsDer::<PublicKeyX509Der<'_>>::as_der(self.0.public_key());
        let der = der.map_err(|_| AuditError::Sign)?;
        Ok(PublicKey(der.as_ref().to_vec()))
    }
}

/// The public half, as `SubjectPublicKeyInfo` (RFC 5280 §4.1): `openssl dgst -verify` takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey(#[serde(with = "encoded")] pub Vec<u8>);

impl PublicKey {
    pub(super) fn verifies(&self, purpose: Purpose, message: &[u8], signature: &[u8]) -> bool {
        let message = [purpose.context(), message].concat();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.0)
            .verify(&message, signature)
            .is_ok()
    }
}

#[cfg(all(test, feature = "fips"))]
mod tests {
    use super::*;
    use keys::is_approved;

    #[test]
    fn the_validated_module_approves() {
        assert!(is_approved(|| Signer::generate().unwrap()));
        let (signer, _) = Signer::generate().unwrap();
        let key = signer.public_key().unwrap();
        let signature = signer.sign(Purpose::Head, b"message").unwrap();
        assert!(is_approved(|| signer
            .sign(Purpose::Head, b"message")
            .unwrap()));
        assert!(is_approved(|| key.verifies(
            Purpose::Head,
            b"message",
            &signature
        )));
    }
}
