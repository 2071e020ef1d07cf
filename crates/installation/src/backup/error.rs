//! Errors of backups.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::InstallationError;

/// Why a backup was not made, has errors, or was not restored.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The installation refused or failed.
    #[error(transparent)]
    Installation(#[from] InstallationError),
    /// An argument is not acceptable.
    #[error("{0}")]
    Argument(String),
    /// With the feature `fips`, and without leave for a cipher outside of the module.
    #[error(
        "a backup is encrypted by age, which is outside of this program's FIPS module; write it to \
         storage that a validated module encrypts, and give --allow-non-fips"
    )]
    OutsideModule,
    /// A file could not be read or written.
    #[error("cannot {call} {path}: {source}")]
    Io {
        /// What was tried.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A database could not be copied.
    #[error("cannot copy the database {path}: {source}")]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The archive was not opened by the passphrase or identity that was given.
    #[error("{path} cannot be decrypted with the given secret: {why}")]
    Key {
        /// The archive.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The archive is none, or was cut off or changed.
    #[error("{path} is not a complete backup of this program: {why}; nothing was restored from it")]
    Damaged {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Something in the archive does not fit.
    #[error("the backup {path} has errors: {}", findings.join("; "))]
    Bad {
        /// The archive.
        path: PathBuf,
        /// What was found.
        findings: Vec<String>,
    },
    /// There is something where the state is to be restored.
    #[error(
        "{path} is not empty ({found}): a backup is restored into a directory that is empty or not \
         there; move what is there away, or give another --state-dir"
    )]
    NotEmpty {
        /// The state directory.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
}

impl BackupError {
    pub(super) fn io(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { call, path, source }
    }

    pub(super) fn database(path: &Path) -> impl Fn(rusqlite::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Database {
            path: path.clone(),
            source,
        }
    }
}

impl From<vault::VaultError> for BackupError {
    fn from(error: vault::VaultError) -> Self {
        Self::Installation(error.into())
    }
}

impl From<crate::catalog::CatalogError> for BackupError {
    fn from(error: crate::catalog::CatalogError) -> Self {
        Self::Installation(error.into())
    }
}

impl From<vault::audit::AuditError> for BackupError {
    fn from(error: vault::audit::AuditError) -> Self {
        Self::Installation(error.into())
    }
}
