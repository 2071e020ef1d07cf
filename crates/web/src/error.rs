//! Why a server could not be started, or ended.

use std::io;

use thiserror::Error;

/// Why a server did not start, or ended.
#[derive(Debug, Error)]
pub enum ServeError {
    /// An address could not be listened on.
    #[error("cannot listen on {listen}: {source}; choose another address with --listen")]
    Listen {
        /// The address, or the path of the socket.
        listen: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system refused something that the server needs.
    #[error("cannot {what}: {source}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl ServeError {
    /// What could not be done, for what the system says.
    pub fn system(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
