//! Errors of the control operations.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::catalog::CatalogError;
use keys::SealingError;
use vault::VaultError;
use vault::audit::AuditError;
use vault::lacks_space;

/// Why a control operation was refused or failed.
#[derive(Debug, Error)]
pub enum InstallationError {
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
    /// A file with a key cannot be used.
    #[error("the key {path} cannot be used: {source}")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A key that hosts share cannot be stored or read.
    #[error(
        "the key {name}, which the servers of this installation share, cannot be used with {key}: {source}; if others \
         succeed with it, copy that file from their host; if none does, somebody has changed the database: restore the \
         server's backup"
    )]
    SharedKey {
        /// Where it is.
        name: String,
        /// The file with the key of this host.
        key: PathBuf,
        /// Why not.
        #[source]
        source: SealingError,
    },
    /// A key URL or an envelope names a remote vault that is not connected.
    #[error(
        "the key vault {url} is not connected; connect it with `sealdisk keyvault connect NAME --url \
         {url}`, and with --ca-file if this system does not trust the CA that signed its certificate"
    )]
    NotConnected {
        /// The vault.
        url: String,
    },
    /// A remote vault is managed where it is kept.
    #[error(
        "the key vault '{name}' is a remote vault at {url}; manage its keys and policies there, with \
         `sealdisk` or `az keyvault`"
    )]
    RemoteVault {
        /// The vault.
        name: String,
        /// Where it is.
        url: String,
    },
    /// A vault of this installation cannot be disconnected.
    #[error(
        "the key vault '{name}' is kept in this installation; only remote vaults can be disconnected"
    )]
    VaultHere {
        /// The vault.
        name: String,
    },
    /// A vault that something uses is deleted only by force.
    #[error(
        "the keys of the key vault '{name}' are used by {users}; what uses them stops when the vault \
         is deleted: give them another key first, or delete it all the same with --force"
    )]
    VaultUsed {
        /// The vault.
        name: String,
        /// What uses its keys.
        users: String,
    },
    /// The vault cannot know an identity of that kind.
    #[error("the key vault {vault} cannot know the identity of this disk encryption set: {why}")]
    Identity {
        /// The vault.
        vault: String,
        /// Why, and what to do.
        why: &'static str,
    },
    /// The audit log of the installation refused or failed.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// There is none where one is to be looked at.
    #[error(
        "there is no installation in {path}; give the right --state-dir, or make one with the first command that \
         creates something, such as `sealdisk keyvault create`"
    )]
    Missing {
        /// The state directory.
        path: PathBuf,
    },
    /// There is none at a server where one is to be looked at.
    #[error(
        "there is no installation at {place}; give the right --catalog, or make one with the first command that creates \
         something, such as `sealdisk disk create`"
    )]
    MissingOnServer {
        /// The database.
        place: String,
    },
    /// Where the state is kept is not known.
    #[error("there is no home directory to keep the state in; give --state-dir")]
    NoStateDirectory,
}

impl InstallationError {
    /// A code for programs, Azure's where it has one.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Catalog(error) => error.code(),
            Self::Vault(error) => error.code.as_str(),
            Self::NotConnected { .. } => "VaultNotFound",
            Self::RemoteVault { .. } | Self::VaultHere { .. } | Self::Identity { .. } => {
                "OperationNotAllowed"
            }
            Self::VaultUsed { .. } => "VaultInUse",
            Self::Audit(error) => error.code(),
            Self::Directory { .. }
            | Self::Exposed { .. }
            | Self::KeyFile { .. }
            | Self::SharedKey { .. }
            | Self::Missing { .. }
            | Self::MissingOnServer { .. }
            | Self::NoStateDirectory => "StateDirectory",
        }
    }

    /// Whether there is no room on a file system of the installation: for what was to be written, or for its record in an
    /// audit log, without which nothing is done.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Catalog(error) => error.is_no_space(),
            Self::Vault(error) => error.is_no_space(),
            Self::Audit(error) => error.is_no_space(),
            Self::Directory { source, .. } | Self::KeyFile { source, .. } => lacks_space(source),
            _ => false,
        }
    }
}
