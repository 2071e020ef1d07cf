//! Errors of the data plane process.

use std::io;

use thiserror::Error;

use crate::inflight::InflightError;
use keys::KeyError;
use protocol::ProtocolError;
use sandbox::SandboxError;
use volume::VolumeError;
use volume::store::StoreError;
use xts::CipherError;

/// Why the data plane could not start or go on.
#[derive(Debug, Error)]
pub enum DataplaneError {
    /// Something of the operating system failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// What the attach process sent could not be received.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The attach process sent a setup that cannot be served.
    #[error("the data plane got no valid setup from the attach process: {0}")]
    Setup(String),
    /// The process could not be confined; it must not serve a guest then.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The host does not let the process have what it needs.
    #[error("{0}")]
    Needs(String),
    /// The key could not be received or kept.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The cipher could not be made.
    #[error(transparent)]
    Cipher(#[from] CipherError),
    /// The layer could not be opened.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The store could not be made ready.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The region that says which requests are in flight could not be used.
    #[error(transparent)]
    Inflight(#[from] InflightError),
    /// The last flush before the end failed.
    #[error("the last flush of the disk failed: {0}")]
    Flush(#[source] volume::pipeline::PipelineError),
}
