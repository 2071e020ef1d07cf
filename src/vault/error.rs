//! Errors of a vault, with the codes that the Azure Key Vault API uses.

use thiserror::Error;

use crate::sqlite::DatabaseError;

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
    /// There is no access policy for that identity.
    PolicyNotFound,
    /// The master key is missing, exposed to others, or not this vault's.
    MasterKey,
    /// A key at rest fails its authentication: the vault's files were tampered with or damaged.
    Tampered,
    /// The key is deleted and can still be recovered, or is being purged.
    KeyDeleted,
    /// The vault does not know the caller: its identity is deleted, or its token is not accepted.
    Unauthorized,
    /// The vault does not answer, or answers that it cannot now.
    Unreachable,
    /// The vault's own storage failed.
    Internal,
}

/// What a failed operation says about whether its key may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Whoever controls the key has said no: disabled, outside its time, deleted, not granted.
    Refused,
    /// Nothing was decided: the vault could not be asked, or failed. Asking again may help.
    Unknown,
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
            Self::PolicyNotFound => "PolicyNotFound",
            Self::MasterKey => "VaultMasterKey",
            Self::Tampered => "VaultTampered",
            Self::KeyDeleted => "ObjectIsDeletedButRecoverable",
            Self::Unauthorized => "Unauthorized",
            Self::Unreachable => "VaultUnreachable",
            Self::Internal => "InternalError",
        }
    }

    /// Whether a refusal with this code is a decision about the key. Damage and failures are none,
    /// whoever caused them: a running disk outlives those for its grace period.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::KeyNotFound
            | Self::KeyDisabled
            | Self::KeyExpired
            | Self::KeyNotYetValid
            | Self::KeyDeleted
            | Self::Unauthorized
            | Self::Forbidden => Verdict::Refused,
            Self::VaultNotFound
            | Self::Conflict
            | Self::BadParameter
            | Self::UnwrapFailed
            | Self::PolicyNotFound
            | Self::MasterKey
            | Self::Tampered
            | Self::Unreachable
            | Self::Internal => Verdict::Unknown,
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

impl VaultError {
    /// A refusal with nothing beneath it.
    pub fn new(code: VaultErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            source: None,
        }
    }

    /// A failure that something beneath has caused; its text becomes part of the message.
    pub fn caused(
        code: VaultErrorCode,
        what: impl std::fmt::Display,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self {
            code,
            message: format!("{what}: {source}"),
            source: Some(Box::new(source)),
        }
    }
}

impl From<rusqlite::Error> for VaultError {
    fn from(source: rusqlite::Error) -> Self {
        let what = "the key vault's database could not be read or written";
        Self::caused(VaultErrorCode::Internal, what, source)
    }
}

impl From<DatabaseError> for VaultError {
    fn from(source: DatabaseError) -> Self {
        Self {
            code: VaultErrorCode::Internal,
            message: source.to_string(),
            source: Some(Box::new(source)),
        }
    }
}
