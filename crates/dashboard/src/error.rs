//! Why the dashboard could not be served.

use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

use keys::KeyError;
use vault::audit::AuditError;
use web::ServeError;

/// Why the dashboard could not be served.
#[derive(Debug, Error)]
pub enum DashboardError {
    /// The address can be reached from other hosts.
    #[error(
        "{0} can be reached from other hosts, and the dashboard speaks no TLS: whoever is on the way would read the \
         token. Listen on 127.0.0.1 and put a proxy with TLS in front (--public-url), or say --allow-remote"
    )]
    Exposed(SocketAddr),
    /// The file with the token cannot be used.
    #[error("{0}")]
    TokenFile(String),
    /// The token can be guessed.
    #[error(
        "the token in {path} has less than {least} characters: remove the file, and a new one is made"
    )]
    ShortToken {
        /// The file.
        path: PathBuf,
        /// How many are needed.
        least: usize,
    },
    /// There are no random numbers.
    #[error("no token can be made: {0}")]
    Random(#[from] KeyError),
    /// The file with checkpoints cannot be used.
    #[error("the checkpoints in {path} cannot be used: {source}")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<AuditError>,
    },
    /// It was not served.
    #[error(transparent)]
    Serve(#[from] ServeError),
}
