//! Errors of the control operations.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::catalog::CatalogError;
use crate::vault::VaultError;

/// Why a control operation was refused or failed.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The catalog refused or failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A vault refused or failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// A directory could not be made or looked into.
    #[error("cannot use the directory {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others could replace what is in a directory.
    #[error(
        "others than this user can write into the directory {path}; \
         use another one, or `chown` and `chmod go-w` it"
    )]
    Exposed {
        /// The directory.
        path: PathBuf,
    },
    /// A key URL or an envelope names a vault that no embedded one can be.
    #[error(
        "the key vault {url} is not an embedded one (https://NAME.vault.localhost), and this \
         version of sealdisk knows no other"
    )]
    ForeignVault {
        /// The vault.
        url: String,
    },
    /// Where the state is kept is not known.
    #[error("there is no home directory to keep the state in; give --state-dir")]
    NoStateDirectory,
}
