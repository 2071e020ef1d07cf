//! Errors of a vault, with the codes that the Azure Key Vault API uses.

use std::io;
use std::path::Path;

use thiserror::Error;

use crate::audit::AuditError;
use database::{ErrorKind, OpenError};
use keys::SealingError;

/// The code of a refusal, named as Azure names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VaultErrorCode {
    /// The vault does not exist.
    VaultNotFound,
    /// The vault is deleted and can still be recovered.
    VaultDeleted,
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
    /// The vault's network rules do not let in who asks from there.
    ForbiddenByFirewall,
    /// The vault is closed to the network.
    ForbiddenByConnection,
    /// The vault's own rules forbid it to everybody, whatever the access policy says.
    ForbiddenByPolicy,
    /// The key does not permit the operation (`key_ops`).
    KeyOperationForbidden,
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
    /// The token that has the vault's private keys does not let us in: its PIN is missing, exposed,
    /// wrong or locked.
    HsmAccess,
    /// A key at rest fails its authentication: the vault's files were tampered with or damaged.
    Tampered,
    /// The key is deleted and can still be recovered.
    KeyDeleted,
    /// The key is deleted for good, but its private key is not destroyed yet.
    KeyBeingPurged,
    /// The vault does not know the caller: its identity is deleted, or its token is not accepted.
    Unauthorized,
    /// The vault does not answer, or answers that it cannot now.
    Unreachable,
    /// The vault, or the catalog, does not know the key or the grant, but may lack what it knew before: it was restored,
    /// or made again.
    Incomplete,
    /// The identity has used the vault more often than its limit.
    Throttled,
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
    /// All of them, for what has to hold for each.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 25] = [
        Self::VaultNotFound,
        Self::VaultDeleted,
        Self::KeyNotFound,
        Self::KeyDisabled,
        Self::KeyExpired,
        Self::KeyNotYetValid,
        Self::Forbidden,
        Self::ForbiddenByFirewall,
        Self::ForbiddenByConnection,
        Self::ForbiddenByPolicy,
        Self::KeyOperationForbidden,
        Self::Conflict,
        Self::BadParameter,
        Self::UnwrapFailed,
        Self::PolicyNotFound,
        Self::MasterKey,
        Self::HsmAccess,
        Self::Tampered,
        Self::KeyDeleted,
        Self::KeyBeingPurged,
        Self::Unauthorized,
        Self::Unreachable,
        Self::Incomplete,
        Self::Throttled,
        Self::Internal,
    ];

    /// The code as it is printed and logged.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::VaultNotFound => "VaultNotFound",
            Self::VaultDeleted => "VaultDeleted",
            Self::KeyNotFound => "KeyNotFound",
            Self::KeyDisabled => "KeyDisabled",
            Self::KeyExpired => "KeyExpired",
            Self::KeyNotYetValid => "KeyNotYetValid",
            Self::Forbidden => "Forbidden",
            Self::ForbiddenByFirewall => "ForbiddenByFirewall",
            Self::ForbiddenByConnection => "ForbiddenByConnection",
            Self::ForbiddenByPolicy => "ForbiddenByPolicy",
            Self::KeyOperationForbidden => "KeyOperationForbidden",
            Self::Conflict => "Conflict",
            Self::BadParameter => "BadParameter",
            Self::UnwrapFailed => "UnwrapFailed",
            Self::PolicyNotFound => "PolicyNotFound",
            Self::MasterKey => "VaultMasterKey",
            Self::HsmAccess => "VaultHsmAccess",
            Self::Tampered => "VaultTampered",
            Self::KeyDeleted => "ObjectIsDeletedButRecoverable",
            Self::KeyBeingPurged => "ObjectIsBeingDeleted",
            Self::Unauthorized => "Unauthorized",
            Self::Unreachable => "VaultUnreachable",
            Self::Incomplete => "VaultIncomplete",
            Self::Throttled => "TooManyRequests",
            Self::Internal => "InternalError",
        }
    }

    /// Whether a refusal with this code is a decision about the key. Damage and failures are none,
    /// whoever caused them: a running disk outlives those for its grace period.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::KeyNotFound
            | Self::VaultDeleted
            | Self::KeyDisabled
            | Self::KeyExpired
            | Self::KeyNotYetValid
            | Self::KeyDeleted
            | Self::KeyOperationForbidden
            | Self::Unauthorized
            | Self::Forbidden => Verdict::Refused,
            // From where a key is asked for says nothing of who may use it.
            Self::VaultNotFound
            | Self::ForbiddenByFirewall
            | Self::ForbiddenByConnection
            | Self::ForbiddenByPolicy
            | Self::Conflict
            | Self::Throttled
            | Self::KeyBeingPurged
            | Self::BadParameter
            | Self::UnwrapFailed
            | Self::PolicyNotFound
            | Self::MasterKey
            | Self::HsmAccess
            | Self::Tampered
            | Self::Unreachable
            | Self::Incomplete
            | Self::Internal => Verdict::Unknown,
        }
    }
}

/// A refusal in the words of the Azure Key Vault API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AzureError {
    /// The HTTP status.
    pub status: u16,
    /// `error.code`.
    pub code: &'static str,
    /// `error.innererror.code`.
    pub inner: Option<&'static str>,
}

impl VaultErrorCode {
    /// The status and codes that Azure Key Vault gives for such a refusal.
    pub fn azure(self) -> AzureError {
        let (status, code, inner) = match self {
            Self::VaultNotFound => (404, "VaultNotFound", None),
            Self::KeyNotFound => (404, "KeyNotFound", None),
            Self::PolicyNotFound => (404, "PolicyNotFound", None),
            Self::Forbidden => (403, "Forbidden", Some("AccessDenied")),
            Self::KeyDisabled
            | Self::VaultDeleted
            | Self::KeyExpired
            | Self::KeyNotYetValid
            | Self::ForbiddenByFirewall
            | Self::ForbiddenByConnection
            | Self::ForbiddenByPolicy
            | Self::KeyOperationForbidden => (403, "Forbidden", Some(self.as_str())),
            Self::Conflict => (409, "Conflict", None),
            Self::KeyDeleted | Self::KeyBeingPurged => (409, "Conflict", Some(self.as_str())),
            Self::BadParameter | Self::UnwrapFailed => (400, "BadParameter", None),
            Self::Unauthorized => (401, "Unauthorized", None),
            Self::Unreachable | Self::Incomplete => (503, "ServiceUnavailable", None),
            Self::Throttled => (429, "Throttled", None),
            Self::MasterKey | Self::HsmAccess | Self::Tampered | Self::Internal => {
                (500, "InternalServerError", None)
            }
        };
        AzureError {
            status,
            code,
            inner,
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

    /// A vault whose files are not to be found where `message` says, which is for the operator of the host alone.
    pub(crate) fn no_files(message: String) -> Self {
        Self {
            code: VaultErrorCode::VaultNotFound,
            message,
            source: Some(Box::new(io::Error::from(io::ErrorKind::NotFound))),
        }
    }

    /// Whether the files of a vault are not to be found, of which the message says where they should be.
    pub fn lacks_files(&self) -> bool {
        self.code == VaultErrorCode::VaultNotFound && self.source.is_some()
    }

    /// The same for somebody else whom it is told too, without what is beneath it.
    pub(crate) fn again(&self) -> Self {
        Self::new(self.code, self.message.clone())
    }

    /// Whether the vault has failed because there is no room on its file system.
    pub fn is_no_space(&self) -> bool {
        let source = self.source.as_deref();
        let open = source.and_then(|source| source.downcast_ref::<OpenError>());
        let audit = source.and_then(|source| source.downcast_ref::<AuditError>());
        self.database() == Some(ErrorKind::Full)
            || open.is_some_and(OpenError::is_no_space)
            || audit.is_some_and(AuditError::is_no_space)
    }

    /// Whether a statement has failed. A transaction has come to nothing then in one engine and not in the other, and
    /// nobody may decide anything by it.
    pub(crate) fn is_of_statement(&self) -> bool {
        // What is wrong with a row is seen when the statement is over.
        self.database()
            .is_some_and(|kind| kind != ErrorKind::Column)
    }

    /// Whether it is certain that the transaction that has failed with this changed nothing, though it was to be durable.
    pub(crate) fn has_changed_nothing(&self) -> bool {
        let kind = self.database();
        matches!(kind, Some(ErrorKind::Overtaken | ErrorKind::Lost))
    }

    /// Whether what has failed with this may be the fault of one statement, so that others may do what is theirs: the
    /// database is there, nobody was waited for in vain, and it is certain that the transaction changed nothing.
    pub(crate) fn may_be_of_one(&self) -> bool {
        use ErrorKind::{Busy, Lost, Overtaken, Unknown};
        !matches!(self.database(), Some(Busy | Lost | Overtaken | Unknown))
    }

    /// What the vault's database has said, if it has failed.
    fn database(&self) -> Option<ErrorKind> {
        let source = self.source.as_deref();
        let mut beneath = source.map(|source| source as &(dyn std::error::Error + 'static));
        while let Some(error) = beneath {
            if let Some(found) = error.downcast_ref::<database::Error>() {
                return Some(found.kind());
            }
            beneath = error.source();
        }
        None
    }
}

/// Whether a file is there. One that cannot be looked at may be: it is not taken for gone.
pub(crate) fn is_there(path: &Path) -> Result<bool, VaultError> {
    path.try_exists().map_err(|source| {
        let what = format!("{} cannot be looked at", path.display());
        VaultError::caused(VaultErrorCode::Internal, what, source)
    })
}

/// What a failure of the database is for whoever asks the vault. That a server cannot be reached passes, as with a vault
/// elsewhere.
fn code_of(kind: ErrorKind) -> VaultErrorCode {
    match kind {
        ErrorKind::Lost | ErrorKind::Overtaken => VaultErrorCode::Unreachable,
        ErrorKind::Unique
        | ErrorKind::ForeignKey
        | ErrorKind::Busy
        | ErrorKind::Unknown
        | ErrorKind::ReadOnly
        | ErrorKind::Full
        | ErrorKind::Column
        | ErrorKind::Other => VaultErrorCode::Internal,
    }
}

impl From<database::Error> for VaultError {
    fn from(source: database::Error) -> Self {
        let what = match source.kind() {
            ErrorKind::Full => {
                "there is no space left for the key vault's database; make room and try again"
            }
            ErrorKind::Lost => "the key vault's database cannot be reached, and nothing is changed",
            ErrorKind::Overtaken => {
                "others have changed the key vault's database all the time, and nothing is changed; try again"
            }
            _ => "the key vault's database could not be read or written",
        };
        Self::caused(code_of(source.kind()), what, source)
    }
}

impl From<OpenError> for VaultError {
    fn from(source: OpenError) -> Self {
        let code = match &source {
            OpenError::Engine { source, .. } => code_of(source.kind()),
            _ => VaultErrorCode::Internal,
        };
        Self {
            code,
            message: source.to_string(),
            source: Some(Box::new(source)),
        }
    }
}

impl From<AuditError> for VaultError {
    fn from(source: AuditError) -> Self {
        let code = match source {
            AuditError::Tampered { .. } => VaultErrorCode::Tampered,
            AuditError::Database(source) => return source.into(),
            _ => VaultErrorCode::Internal,
        };
        Self {
            code,
            message: source.to_string(),
            source: Some(Box::new(source)),
        }
    }
}

impl From<SealingError> for VaultError {
    fn from(source: SealingError) -> Self {
        let what = "the vault's master key could not be used";
        Self::caused(VaultErrorCode::Internal, what, source)
    }
}
