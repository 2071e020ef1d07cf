//! Errors of a store process, and of who speaks with one.

use std::io;

use sandbox::SandboxError;
use store_ring::RingError;
use thiserror::Error;

/// What can go wrong.
#[derive(Debug, Error)]
pub enum StoreProcessError {
    /// Something of the operating system failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The other end is gone.
    #[error("the {0} has ended")]
    Ended(&'static str),
    /// What came is no message.
    #[error("what came from the {from} is no message: {why}")]
    Malformed {
        /// From whom.
        from: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The store process did not do it.
    #[error("{0}")]
    Refused(String),
    /// The memory that is shared with the data plane.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// It cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

impl StoreProcessError {
    pub(crate) fn io<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Self {
        move |source| Self::Io {
            what,
            source: source.into(),
        }
    }
}
