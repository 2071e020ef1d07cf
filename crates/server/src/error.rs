//! Why the server could not be started.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

use installation::InstallationError;

/// Why the server did not start, or ended.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The installation refused or failed.
    #[error(transparent)]
    Installation(#[from] InstallationError),
    /// A key of the token service cannot be used.
    #[error("the token service cannot use its key {path}: {why}")]
    SigningKey {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A file could not be used.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was to be done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A certificate or its key cannot be used.
    #[error("cannot use the TLS certificate {path}: {why}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// An address could not be listened on.
    #[error("cannot listen on {address}: {source}; choose another address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Tokens would be given to other hosts, or in the clear.
    #[error(
        "{option} has to be an address of this host alone (127.0.0.0/8 or ::1), not {address}: who \
         reaches it gets tokens, over a connection that is not encrypted"
    )]
    NotLoopback {
        /// The option.
        option: &'static str,
        /// What it said.
        address: SocketAddr,
    },
    /// A domain makes no sense.
    #[error("'{domain}' is no domain; give a host name in lower case, as vault.example.net")]
    Domain {
        /// What was given.
        domain: String,
    },
    /// The system refused something that a server needs.
    #[error("cannot {what}: {source}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}
