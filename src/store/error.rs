//! Errors of the store.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// What a store can fail with.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The kernel refused or failed an operation.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file ends before the place where a read was to find data.
    #[error("the data file ends at byte {at}, before the end of the disk: it was truncated")]
    Truncated {
        /// Where the read found the end.
        at: u64,
    },
    /// A file of the disk cannot be opened.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// io_uring cannot be used.
    #[error(
        "cannot set up io_uring: {0}; Linux 6.1 or newer is needed, with kernel.io_uring_disabled=0"
    )]
    Uring(#[source] io::Error),
}

impl StoreError {
    /// What the kernel said, by its kind.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Io { source, .. } | Self::Open { source, .. } | Self::Uring(source) => {
                source.kind()
            }
            Self::Truncated { .. } => io::ErrorKind::UnexpectedEof,
        }
    }

    /// Whether the host has no space left for the write.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}
