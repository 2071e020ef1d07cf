//! The error that ends a command.

use crate::catalog::{CatalogError, Kind};
use crate::control::ControlError;
use vault::VaultError;
use vault::audit::AuditError;

/// A refusal or failure as the user sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct CliError {
    /// A code for programs, Azure's where it has one.
    pub code: &'static str,
    /// One line: what, why, and what to do.
    pub message: String,
    /// The exit status: 1, or 2 for arguments that make no sense; `disk check` has its own.
    pub status: u8,
}

impl CliError {
    /// A refusal or failure, with exit status 1.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            status: 1,
        }
    }

    /// Arguments that make no sense, with exit status 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            code: "InvalidArgument",
            message: message.into(),
            status: 2,
        }
    }
}

impl From<CatalogError> for CliError {
    fn from(error: CatalogError) -> Self {
        let code = match &error {
            CatalogError::NotFound {
                kind: Kind::Vault, ..
            } => "VaultNotFound",
            CatalogError::NotFound { .. } => "ResourceNotFound",
            CatalogError::Exists { .. } | CatalogError::Changed { .. } => "Conflict",
            CatalogError::InUse { .. } => "InUseDiskEncryptionSetCannotBeDeleted",
            CatalogError::VaultInUse { .. } => "VaultInUse",
            CatalogError::NotSystemAssigned { .. } => "BadParameter",
            CatalogError::Lost { .. } => "CatalogLost",
            CatalogError::Damaged { .. }
            | CatalogError::Copy { .. }
            | CatalogError::Open(_)
            | CatalogError::Sqlite(_) => "CatalogError",
        };
        Self::new(code, error.to_string())
    }
}

impl From<AuditError> for CliError {
    fn from(error: AuditError) -> Self {
        let code = match &error {
            AuditError::Tampered { .. } => super::audit::TAMPERED,
            AuditError::SegmentTaken { .. } | AuditError::Export { .. } => "BadParameter",
            AuditError::Write(_) => "OutputError",
            _ => "AuditLogError",
        };
        Self::new(code, error.to_string())
    }
}

impl From<VaultError> for CliError {
    fn from(error: VaultError) -> Self {
        Self::new(error.code.as_str(), error.to_string())
    }
}

impl From<ControlError> for CliError {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Catalog(error) => error.into(),
            ControlError::Vault(error) => error.into(),
            ControlError::NotConnected { .. } => Self::new("VaultNotFound", error.to_string()),
            ControlError::VaultElsewhere { .. }
            | ControlError::VaultHere { .. }
            | ControlError::Identity { .. } => Self::new("OperationNotAllowed", error.to_string()),
            ControlError::VaultUsed { .. } => Self::new("VaultInUse", error.to_string()),
            ControlError::Disks(error) => (*error).into(),
            ControlError::Audit(error) => error.into(),
            ControlError::Directory { .. }
            | ControlError::Exposed { .. }
            | ControlError::NoStateDirectory => Self::new("StateDirectory", error.to_string()),
        }
    }
}
