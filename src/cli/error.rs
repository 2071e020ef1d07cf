//! The error that ends a command.

use std::borrow::Cow;

use super::usage;
use alarms::AlarmsError;
use attach::AttachError;
use disks::DiskError;
use installation::InstallationError;
use installation::catalog::{CatalogError, Kind};
use vault::audit::AuditError;
use vault::{MissingKey, VaultError};

/// A refusal or failure as the user sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct CliError {
    /// A code for programs, Azure's where it has one.
    pub code: Cow<'static, str>,
    /// One line: what, why, and what to do.
    pub message: String,
    /// The exit status: 1, or 2 for arguments that make no sense; `disk check` has its own.
    pub status: u8,
    /// The thing that is not there, where that is what is wrong.
    pub not_found: Option<NotFound>,
}

/// A thing that is not there.
#[derive(Debug, PartialEq, Eq)]
pub enum NotFound {
    /// What the catalog has by name.
    Named(Kind, String),
    /// A key of a vault that is kept here.
    Key(MissingKey),
}

/// The code of arguments that make no sense.
pub(super) const INVALID_ARGUMENT: &str = "InvalidArgument";

impl CliError {
    /// A refusal or failure, with exit status 1, or 2 for the code of [`CliError::usage`].
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        let code = code.into();
        Self {
            status: if code == INVALID_ARGUMENT { 2 } else { 1 },
            code,
            message: message.into(),
            not_found: None,
        }
    }

    /// Arguments that make no sense, with exit status 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(INVALID_ARGUMENT, message)
    }

    /// The same, as clap has found.
    pub fn arguments(error: &clap::Error) -> Self {
        Self::usage(usage::one_line(&error.render().to_string()))
    }
}

impl From<CatalogError> for CliError {
    fn from(error: CatalogError) -> Self {
        let plain = Self::new(error.code(), error.to_string());
        let not_found = match error {
            CatalogError::NotFound { kind, name } => Some(NotFound::Named(kind, name)),
            _ => None,
        };
        Self { not_found, ..plain }
    }
}

impl From<AuditError> for CliError {
    fn from(error: AuditError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<VaultError> for CliError {
    fn from(error: VaultError) -> Self {
        let source = error.source.as_deref();
        let missing = source.and_then(|source| source.downcast_ref::<MissingKey>());
        Self {
            not_found: missing.cloned().map(NotFound::Key),
            ..Self::new(error.code.as_str(), error.to_string())
        }
    }
}

impl From<InstallationError> for CliError {
    fn from(error: InstallationError) -> Self {
        match error {
            InstallationError::Catalog(error) => error.into(),
            InstallationError::Vault(error) => error.into(),
            error => Self::new(error.code(), error.to_string()),
        }
    }
}

impl From<DiskError> for CliError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Control(error) => error.into(),
            error => Self::new(error.code(), error.to_string()),
        }
    }
}

impl From<AlarmsError> for CliError {
    fn from(error: AlarmsError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<AttachError> for CliError {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::Disk(error) => error.into(),
            error => Self::new(error.code().to_owned(), error.to_string()),
        }
    }
}
