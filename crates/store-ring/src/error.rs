//! Errors of rings in shared memory.

use std::fmt::{self, Display};
use std::io;

use thiserror::Error;

/// One of the two who share the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The data plane.
    DataPlane,
    /// The store process.
    StoreProcess,
}

impl Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DataPlane => "data plane",
            Self::StoreProcess => "store process",
        })
    }
}

/// What can go wrong with a lane.
#[derive(Debug, Error)]
pub enum RingError {
    /// The kernel refused something.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The memory is not what was announced.
    #[error("the memory that data plane and store process share {what}")]
    Memory {
        /// What is wrong with it, as a verb.
        what: &'static str,
    },
    /// The other side broke the rules. Nothing more is to be done with the lane.
    #[error("the {by} does not keep to the rules of the memory that it shares: {what}")]
    Violation {
        /// Who.
        by: Side,
        /// What it did.
        what: &'static str,
    },
}

impl RingError {
    pub(crate) fn io<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Self {
        move |source| Self::Io {
            what,
            source: source.into(),
        }
    }
}
