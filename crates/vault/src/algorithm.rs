//! The algorithms that keys of a vault encrypt with.

use std::fmt;
use std::str::FromStr;

use super::{VaultError, VaultErrorCode};

/// The algorithm that wraps a DEK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WrapAlgorithm {
    /// RSA-OAEP with SHA-256 and MGF1-SHA-256 (RFC 8017 §7.1), Azure's `RSA-OAEP-256`.
    RsaOaep256,
}

/// An algorithm that clients of a vault may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EncryptionAlgorithm {
    /// RSA-OAEP with SHA-256 and MGF1-SHA-256 (RFC 8017 §7.1), Azure's `RSA-OAEP-256`.
    RsaOaep256,
    /// The same with SHA-1 (RFC 8017's default), Azure's `RSA-OAEP`: for clients that ask for it.
    RsaOaep,
}

impl EncryptionAlgorithm {
    /// Azure's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RsaOaep256 => "RSA-OAEP-256",
            Self::RsaOaep => "RSA-OAEP",
        }
    }
}

impl From<WrapAlgorithm> for EncryptionAlgorithm {
    fn from(algorithm: WrapAlgorithm) -> Self {
        match algorithm {
            WrapAlgorithm::RsaOaep256 => Self::RsaOaep256,
        }
    }
}

impl fmt::Display for EncryptionAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EncryptionAlgorithm {
    type Err = VaultError;

    fn from_str(text: &str) -> Result<Self, VaultError> {
        [Self::RsaOaep256, Self::RsaOaep]
            .into_iter()
            .find(|algorithm| algorithm.name() == text)
            .ok_or_else(|| {
                let text: String = text.chars().take(64).collect();
                VaultError::new(
                    VaultErrorCode::BadParameter,
                    format!(
                        "the algorithm '{text}' is not supported; use RSA-OAEP-256, or RSA-OAEP \
                         where SHA-1 is asked for"
                    ),
                )
            })
    }
}
