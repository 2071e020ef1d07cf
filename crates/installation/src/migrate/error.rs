//! Why an installation was not moved.

use std::path::PathBuf;

use thiserror::Error;

use crate::InstallationError;
use crate::catalog::CatalogError;
use vault::VaultError;
use vault::audit::AuditError;

/// Why an installation was not moved to a server, or not all of it yet.
#[derive(Debug, Error)]
pub enum MigrateError {
    /// The installation refused or failed.
    #[error(transparent)]
    Installation(#[from] InstallationError),
    /// A vault of its own is lost.
    #[error(
        "the file {path} of the key vault '{name}' is gone, and a move without it would not be whole: bring it back, or \
         give the key vault up with `sealdisk keyvault delete {name} --force`"
    )]
    VaultLost {
        /// Its name.
        name: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// An audit log does not verify.
    #[error(
        "the audit log of the {what} does not verify, and nothing is moved that was tampered with: {finding}; look at \
         `sealdisk audit verify`"
    )]
    Chain {
        /// What has it.
        what: String,
        /// What does not fit.
        finding: String,
    },
    /// A key that servers share is not the one there that was moved.
    #[error("the key {name} is another one where it was moved to: run this again")]
    Key {
        /// Where it is now.
        name: PathBuf,
    },
    /// A table's rows could not be moved.
    #[error(
        "the table {table} of the {what} cannot be moved to {place}: {source}; nothing of this installation is changed: run \
         this again when that is mended"
    )]
    Table {
        /// What has it.
        what: String,
        /// Its name.
        table: String,
        /// Where it was to be moved to.
        place: String,
        /// What the database said.
        #[source]
        source: database::Error,
    },
    /// What is there is not what was moved.
    #[error(
        "the table {table} of the {what} has {here} rows here, and {there} at {place}, which differ: somebody may have \
         changed them there; nothing of this installation is changed: run this again"
    )]
    Differs {
        /// What has it.
        what: String,
        /// Its name.
        table: String,
        /// Where it was moved to.
        place: String,
        /// The rows in the file.
        here: u64,
        /// The rows on the server.
        there: u64,
    },
}

impl MigrateError {
    /// A code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Installation(error) => error.code(),
            Self::VaultLost { .. } => "VaultNotFound",
            Self::Chain { .. } => AuditError::TAMPERED,
            Self::Table { .. } | Self::Differs { .. } | Self::Key { .. } => "CatalogError",
        }
    }
}

impl From<CatalogError> for MigrateError {
    fn from(error: CatalogError) -> Self {
        Self::Installation(error.into())
    }
}

impl From<database::Error> for MigrateError {
    fn from(error: database::Error) -> Self {
        CatalogError::from(error).into()
    }
}

impl From<VaultError> for MigrateError {
    fn from(error: VaultError) -> Self {
        Self::Installation(error.into())
    }
}

impl From<AuditError> for MigrateError {
    fn from(error: AuditError) -> Self {
        Self::Installation(error.into())
    }
}
