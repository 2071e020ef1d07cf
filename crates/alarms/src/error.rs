//! Why alarms cannot be looked for.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use disks::DiskError;
use installation::InstallationError;
use installation::catalog::CatalogError;

/// Errors of looking for alarms.
#[derive(Debug, Error)]
pub enum AlarmsError {
    /// The installation cannot be read.
    #[error(transparent)]
    Installation(#[from] InstallationError),
    /// Its disks cannot be listed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The settings cannot be read or written.
    #[error("cannot {what} the alarm settings {}: {source}", path.display())]
    Settings {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// A setting makes no sense.
    #[error("{0}")]
    Argument(String),
    /// What tells of events cannot be started.
    #[error("cannot start what tells of events: {0}")]
    Notifier(#[source] io::Error),
}

impl AlarmsError {
    /// A code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Installation(error) => error.code(),
            Self::Disk(error) => error.code(),
            Self::Settings { .. } => "AlarmSettings",
            Self::Argument(_) => "BadParameter",
            Self::Notifier(_) => "InternalError",
        }
    }
}

impl From<CatalogError> for AlarmsError {
    fn from(error: CatalogError) -> Self {
        Self::Installation(error.into())
    }
}
