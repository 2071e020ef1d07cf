//! Errors of a vault, with the codes that the Azure Key Vault API uses.

use thiserror::Error;

/// The code of a refusal, named as Azure names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VaultErrorCode {
    /// The vault does not exist.
    VaultNotFound,
    /// No such key, or no such version of it.
    KeyNotFound,
    /// The key's `enabled` attribute is false.
    KeyDisabled,
    /// The key's expiry lies in the past.
    KeyExpired,
    /// The key's not-before lies in the future.
    KeyNotYetValid,
    /// The caller's access policy lacks the permission.
    Forbidden,
    /// A vault or key of that name exists.
    Conflict,
    /// An argument is not acceptable.
    BadParameter,
    /// A wrapped value could not be unwrapped; why is deliberately not said.
    UnwrapFailed,
    /// The vault's own storage failed.
    Internal,
}

impl VaultErrorCode {
    /// The code as it is printed and logged.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::VaultNotFound => "VaultNotFound",
            Self::KeyNotFound => "KeyNotFound",
            Self::KeyDisabled => "KeyDisabled",
            Self::KeyExpired => "KeyExpired",
            Self::KeyNotYetValid => "KeyNotYetValid",
            Self::Forbidden => "Forbidden",
            Self::Conflict => "Conflict",
            Self::BadParameter => "BadParameter",
            Self::UnwrapFailed => "UnwrapFailed",
            Self::Internal => "InternalError",
        }
    }
}

/// A refusal or failure of a vault operation: one line that says what, why and what to do.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct VaultError {
    /// What kind of refusal.
    pub code: VaultErrorCode,
    /// One line for a person.
    pub message: String,
    /// The failure beneath, where there is one.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}
