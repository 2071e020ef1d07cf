//! Errors of confinement.

use std::io;

use thiserror::Error;

/// Why a process could not be confined, or a confined one not be started.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// Something of the confinement cannot be had, and the process must not go on without.
    #[error(
        "the {process} cannot be confined as it should be: {missing}; let it have this, or give --sandbox \
         best-effort to go on without"
    )]
    Missing {
        /// Which process.
        process: &'static str,
        /// What, and why.
        missing: String,
    },
    /// Something of the operating system failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A filter of system calls could not be made.
    #[error("cannot make the filter of system calls: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// A filter of system calls could not be applied.
    #[error("cannot apply the filter of system calls: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// A user by that name or number cannot be had.
    #[error("no user '{name}' for the data plane: {why}")]
    User {
        /// As it was given.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

/// For `map_err`.
pub(crate) fn io_error<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> SandboxError {
    move |source| SandboxError::Io {
        what,
        source: source.into(),
    }
}
