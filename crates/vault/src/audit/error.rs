//! Errors of audit logs.

use std::path::PathBuf;

use thiserror::Error;

use database::{ErrorKind, OpenError, lacks_space};
use keys::SealingError;

/// Why a log could not be read or written.
#[derive(Debug, Error)]
pub enum AuditError {
    /// The database could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database failed.
    #[error("the audit log could not be read or written: {0}")]
    Database(#[from] database::Error),
    /// The key that the signing key is sealed under is unavailable.
    #[error("the key of the audit log is unavailable: {0}")]
    Key(#[source] SealingError),
    /// This host has not got the key that the signing key of the log that hosts share is sealed under.
    #[error(
        "this host has not got the key of the installation's audit log yet, without which nothing can be recorded or done: \
         copy {path} from a host that has it (mode 0600)"
    )]
    NoKey {
        /// Where it is to be.
        path: PathBuf,
    },
    /// The key that this host has is not that of the log that hosts share.
    #[error(
        "{path} is not the key of this installation's audit log: it is that of another installation, or an earlier one; \
         copy it from a host whose commands work; if there is none, the log's signing key was tampered with: restore the \
         server's backup"
    )]
    ForeignKey {
        /// The file.
        path: PathBuf,
    },
    /// The log was moved to a server.
    #[error(
        "the audit log {path} was moved to {place}: give --catalog, or set SEALDISK_CATALOG, with its address"
    )]
    Moved {
        /// The file.
        path: PathBuf,
        /// Where the log is.
        place: String,
    },
    /// The log says something that this program did not write there.
    #[error(
        "the audit log was tampered with or damaged: {what}; nothing is appended to it: look at \
         `sealdisk audit verify`, and restore it from a backup"
    )]
    Tampered {
        /// What does not fit.
        what: String,
    },
    /// The directory has a file in the place of the segment that is to be written.
    #[error(
        "{path} is in the way of the next segment of this log and was left as it is ({what}): archive into \
         another directory"
    )]
    SegmentTaken {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// There is room for essential records only.
    #[error(
        "there is no space left for the audit log but for what is essential, and what cannot be \
         recorded is not done: make room, or archive records with `sealdisk audit archive`"
    )]
    Full,
    /// A signature could not be made.
    #[error("the audit log could not be signed")]
    Sign,
    /// A record cannot be stored as it is.
    #[error("a record of the audit log has no valid time: {0}")]
    Time(#[from] time::error::Format),
    /// A file could not be read or written.
    #[error("cannot {call} {path}: {source}")]
    Io {
        /// What was tried.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A line of an export is none.
    #[error("line {line} is not one of an exported audit log: {what}")]
    Export {
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// An export could not be written.
    #[error("the export could not be written: {0}")]
    Write(#[source] std::io::Error),
}

impl AuditError {
    /// The code of [`AuditError::Tampered`].
    pub const TAMPERED: &str = "AuditLogTampered";

    /// A code for programs, Azure's where it has one.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Tampered { .. } => Self::TAMPERED,
            Self::SegmentTaken { .. } | Self::Export { .. } => "BadParameter",
            Self::Write(_) => "OutputError",
            _ => "AuditLogError",
        }
    }

    /// Whether there is no room on the file system for what was to be recorded.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Full => true,
            Self::Open(error) => error.is_no_space(),
            Self::Database(error) => error.kind() == ErrorKind::Full,
            Self::Io { source, .. } | Self::Write(source) => lacks_space(source),
            _ => false,
        }
    }

    pub(super) fn tampered(what: impl Into<String>) -> Self {
        Self::Tampered { what: what.into() }
    }
}
