//! Errors of the store.

use std::io;
use std::path::PathBuf;

use store_ring::RingError;
use thiserror::Error;

use super::locked::locked_memory_limit;

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
    #[error("cannot open {path}: {source}{}", keys::read_only::advice(source))]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A ring, or memory for one, is unavailable.
    #[error("cannot {what}: {source}; {}", advice(what, source))]
    Setup {
        /// What was tried, as a verb.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A ring that worked does so no more.
    #[error("io_uring has failed: {0}")]
    Uring(#[source] io::Error),
    /// The memory that is shared with the store process cannot be used any more.
    #[error(transparent)]
    Lane(#[from] RingError),
}

/// What to change on a host that does not let a ring be made.
fn advice(what: &str, error: &io::Error) -> String {
    let out_of_memory = matches!(
        error.raw_os_error(),
        Some(libc::ENOMEM | libc::EAGAIN | libc::EFAULT)
    );
    match locked_memory_limit() {
        // The kernel says the same, whichever it is.
        Some(most) if out_of_memory && what.starts_with(StoreError::MAKE_RING) => format!(
            "raise RLIMIT_MEMLOCK (`ulimit -l`, LimitMEMLOCK= of a systemd unit), {} KiB of which are for \
             the rings of all processes of this user; or {OF_MEMORY}",
            most / 1024
        ),
        _ => advice_on(error).into(),
    }
}

/// What limits memory that is not locked.
const OF_MEMORY: &str = "raise MemoryMax= of the systemd unit, the memory limit of the container, \
    RLIMIT_AS or RLIMIT_DATA (`ulimit -v`, LimitAS=, LimitDATA=), or offer fewer queues (--num-queues)";

fn advice_on(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is forbidden to this process: set the sysctl kernel.io_uring_disabled to 0, and \
             allow it in the seccomp filter of the systemd unit (SystemCallFilter=@aio) or container"
        }
        Some(libc::ENOSYS) => {
            "Linux 6.1 or newer is needed, and a seccomp filter that lets io_uring through \
             (SystemCallFilter=@aio of a systemd unit, the seccomp profile of a container)"
        }
        Some(libc::EINVAL | libc::EOPNOTSUPP) => "Linux 6.1 or newer is needed",
        Some(libc::EMFILE) => {
            "raise RLIMIT_NOFILE (`ulimit -n`, LimitNOFILE= of a systemd unit), or offer fewer queues \
             (--num-queues)"
        }
        Some(libc::ENFILE) => "raise the sysctl fs.file-max",
        Some(libc::ENOMEM | libc::EAGAIN | libc::EFAULT) => OF_MEMORY,
        _ => "look at the limits of the systemd unit or container",
    }
}

impl StoreError {
    /// The making of a ring, which takes memory that is locked.
    pub(super) const MAKE_RING: &str = "set up io_uring";

    /// What the kernel said, by its kind.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Io { source, .. }
            | Self::Open { source, .. }
            | Self::Setup { source, .. }
            | Self::Uring(source) => source.kind(),
            Self::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            Self::Lane(RingError::Io { source, .. }) => source.kind(),
            Self::Lane(_) => io::ErrorKind::InvalidData,
        }
    }

    /// Whether the host has no space left for the write.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}
