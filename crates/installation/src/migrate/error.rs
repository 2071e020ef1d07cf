//! Why an installation was not moved.

use thiserror::Error;

use crate::InstallationError;
use crate::catalog::CatalogError;

/// Why an installation was not moved to a server, or not all of it yet.
#[derive(Debug, Error)]
pub enum MigrateError {
    /// The installation refused or failed.
    #[error(transparent)]
    Installation(#[from] InstallationError),
    /// It has vaults of its own.
    #[error(
        "these key vaults are kept in this installation, and this version moves none: {}; keep them in an installation of \
         their own, which `sealdisk keyvault serve` serves, and connect them here (`sealdisk keyvault connect`)",
        names.join(", ")
    )]
    Vaults {
        /// Their names.
        names: Vec<String>,
    },
    /// Disks are in use.
    #[error(
        "these disks are attached, or in use otherwise, and the processes that have them would go on with the catalog \
         that is left: {}; detach them before",
        names.join(", ")
    )]
    Used {
        /// Their names.
        names: Vec<String>,
    },
    /// A table's rows could not be moved.
    #[error(
        "the table {table} of the {what} cannot be moved to {place}: {source}; nothing of this installation is changed: run \
         this again when that is mended"
    )]
    Table {
        /// What has it.
        what: &'static str,
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
        what: &'static str,
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
            Self::Vaults { .. } | Self::Used { .. } => "OperationNotAllowed",
            Self::Table { .. } | Self::Differs { .. } => "CatalogError",
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
