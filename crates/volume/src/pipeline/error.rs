//! Errors of the pipeline.

use std::sync::Arc;

use thiserror::Error;

use crate::store::StoreError;
use crate::{FailedSync, VolumeError};
use xts::CipherError;

/// Why one request failed. The guest sees an I/O error; the log has this.
#[derive(Debug, Clone, Error)]
pub enum RequestError {
    /// The store failed a piece of the request.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// A block map could not be loaded.
    #[error(transparent)]
    Volume(Arc<VolumeError>),
    /// A sync failed just now. Completed writes may be lost, so no flush succeeds any more.
    #[error("completed writes may be lost: {source}")]
    SyncFailed {
        /// Of which file.
        file: FailedSync,
        /// What the kernel said.
        source: Arc<StoreError>,
    },
    /// An earlier sync failed, so nothing can be promised to be durable any more.
    #[error(
        "an earlier sync of the disk's {0} failed, so completed writes may be lost; detach the disk, \
         repair its storage and run `disk check`"
    )]
    Lost(FailedSync),
    /// The disk's key was revoked; there is nothing to encrypt or decrypt with.
    #[error("the disk's key was revoked")]
    NoKey,
    /// The request goes past the end of the disk or is cut wrongly.
    #[error("bytes {at} to {end} are not a range of whole sectors of this disk")]
    Range {
        /// First byte.
        at: u64,
        /// Byte after the last.
        end: u64,
    },
}

impl RequestError {
    /// Whether the host has no space left: for data, for the map, or in the runtime directory. The
    /// request can be tried again as a whole.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Store(error) => error.is_no_space(),
            Self::Volume(error) => error.is_no_space(),
            Self::SyncFailed { .. } | Self::Lost(_) | Self::NoKey | Self::Range { .. } => false,
        }
    }

    /// Of which file a sync has failed, if that is what the request failed for.
    pub fn failed_sync(&self) -> Option<FailedSync> {
        match self {
            Self::SyncFailed { file, .. } | Self::Lost(file) => Some(*file),
            Self::Store(_) | Self::Volume(_) | Self::NoKey | Self::Range { .. } => None,
        }
    }
}

impl From<StoreError> for RequestError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<VolumeError> for RequestError {
    fn from(error: VolumeError) -> Self {
        Self::Volume(Arc::new(error))
    }
}

/// Errors of using a disk without a guest.
#[derive(Debug, Error)]
pub enum PipelineError {
    /// A request failed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The store could not be made ready, or its ring failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The layer could not be opened.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The key could not be expanded.
    #[error(transparent)]
    Cipher(#[from] CipherError),
}

impl PipelineError {
    /// As [`RequestError::failed_sync`].
    pub fn failed_sync(&self) -> Option<FailedSync> {
        match self {
            Self::Request(error) => error.failed_sync(),
            Self::Store(_) | Self::Volume(_) | Self::Cipher(_) => None,
        }
    }
}
