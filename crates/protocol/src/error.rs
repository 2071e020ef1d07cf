//! Errors of what the two processes of an attach say to each other.

use std::io;

use thiserror::Error;

use keys::KeyError;
use volume::store::StoreError;
use xts::CipherError;

/// Why a message could not be sent, or not be understood.
#[derive(Debug, Error)]
pub enum ProtocolError {
    /// The socket failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The other process sent something else than it may.
    #[error("the data plane got no valid setup from the control process: {0}")]
    Message(String),
    /// A key could not be sent or received.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A layer has a data unit that there is no cipher for.
    #[error(transparent)]
    Cipher(#[from] CipherError),
    /// A descriptor is not one of a layer's file.
    #[error(transparent)]
    Store(#[from] StoreError),
}
