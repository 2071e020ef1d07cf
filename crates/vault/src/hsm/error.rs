//! What a token's answers mean.

use std::path::PathBuf;

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};
use thiserror::Error as ThisError;

use super::token::HsmToken;
use crate::rsa_key::unwrap_failed;
use crate::{VaultError, VaultErrorCode};
use keys::KeyError;

/// Why a token did not do what it was asked for.
#[derive(Debug, ThisError)]
pub(super) enum HsmError {
    #[error("the PKCS#11 library {} cannot be used: {}", path.display(), shown(source))]
    Library {
        path: PathBuf,
        #[source]
        source: Error,
    },
    #[error("it is not there")]
    NoToken,
    #[error("there are several tokens with this label; give them different ones")]
    SeveralTokens,
    #[error("its PIN is unavailable: {0}")]
    PinFile(String),
    #[error("it refuses the PIN; correct the PIN file")]
    Pin,
    #[error(
        "its PIN is locked, or one wrong try away from it, so none is made; log in to it by hand \
         with the right PIN, or have its security officer reset it"
    )]
    LastTry,
    #[error("it has not answered for {0} s")]
    Hangs(u64),
    #[error("another operation in its library hangs")]
    InUse,
    #[error("no thread could be started: {0}")]
    Thread(#[source] std::io::Error),
    #[error("the key's object is gone")]
    Gone,
    #[error("it made a key that can be taken out of it; it is not used")]
    Extractable,
    #[error("its answer has no {0}")]
    Senseless(&'static str),
    #[error("the wrapped value does not open")]
    Ciphertext,
    #[error(transparent)]
    Memory(#[from] KeyError),
    #[error("{}", shown(.0))]
    Cryptoki(#[from] Error),
}

/// The name of what a token answered; the library's own text for it is a paragraph.
fn shown(error: &Error) -> String {
    match error {
        Error::Pkcs11(rv, function) => format!("C_{function:?} fails with {rv:?}"),
        other => other.to_string(),
    }
}

impl HsmError {
    fn rv(&self) -> Option<RvError> {
        match self {
            Self::Cryptoki(Error::Pkcs11(rv, _)) => Some(*rv),
            _ => None,
        }
    }

    /// Whether another session may succeed where this one did not.
    pub fn session_is_over(&self) -> bool {
        let over = matches!(
            self.rv(),
            Some(
                RvError::SessionHandleInvalid
                    | RvError::SessionClosed
                    | RvError::UserNotLoggedIn
                    | RvError::CryptokiNotInitialized
            )
        );
        over || self.token_is_gone()
    }

    /// Whether the token may not be where it was. Some libraries show a token that was taken out as
    /// an empty one, so that a key is missing is believed only when the library has looked anew.
    pub fn token_is_gone(&self) -> bool {
        matches!(self, Self::NoToken | Self::Gone)
            || matches!(
                self.rv(),
                Some(
                    RvError::DeviceRemoved
                        | RvError::DeviceError
                        | RvError::TokenNotPresent
                        | RvError::TokenNotRecognized
                        | RvError::SlotIdInvalid
                )
            )
    }

    /// The error that a caller of the vault gets.
    pub fn into_vault_error(self, token: &HsmToken) -> VaultError {
        let code = match &self {
            Self::Ciphertext => return unwrap_failed(),
            Self::Gone => VaultErrorCode::KeyNotFound,
            Self::PinFile(_) | Self::Pin | Self::LastTry | Self::SeveralTokens => {
                VaultErrorCode::HsmAccess
            }
            Self::Extractable | Self::Memory(_) => VaultErrorCode::Internal,
            Self::Library { .. }
            | Self::NoToken
            | Self::Hangs(_)
            | Self::InUse
            | Self::Thread(_)
            | Self::Senseless(_)
            | Self::Cryptoki(_) => VaultErrorCode::Unreachable,
        };
        VaultError {
            code,
            message: format!("the token '{}': {self}", token.label),
            source: Some(Box::new(self)),
        }
    }
}

/// What a failed decryption means: the data is wrong, unless the answer speaks of something else.
/// Tokens say `GENERAL_ERROR` and `FUNCTION_FAILED` for padding that is wrong.
pub(super) fn decryption(error: Error) -> HsmError {
    match error {
        Error::Pkcs11(
            RvError::KeyHandleInvalid | RvError::ObjectHandleInvalid,
            Function::DecryptInit | Function::Decrypt,
        ) => HsmError::Gone,
        Error::Pkcs11(
            RvError::EncryptedDataInvalid
            | RvError::EncryptedDataLenRange
            | RvError::DataInvalid
            | RvError::DataLenRange
            | RvError::GeneralError
            | RvError::FunctionFailed,
            Function::Decrypt,
        ) => HsmError::Ciphertext,
        other => other.into(),
    }
}
