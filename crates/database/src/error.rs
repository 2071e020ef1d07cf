//! What can go wrong, told apart in the same way for each engine.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A statement or a transaction failed.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// What it means for whoever asked.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// What a failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is a row already with what only one may have.
    Unique,
    /// It names a row of another table that is not there.
    ForeignKey,
    /// Others have used the database for too long.
    Busy,
    /// Somebody else was faster with what it would have changed or has read; nothing is changed.
    Overtaken,
    /// The database cannot be reached; nothing is changed.
    Lost,
    /// The database could not be reached any more when it was to make a change durable, and whether it has done so is
    /// not known.
    Unknown,
    /// Nothing can be changed in it.
    ReadOnly,
    /// It has no room.
    Full,
    /// A column is not there, or not of the type that was asked for.
    Column,
    /// A table is not there, on a server, where the schema that had it may be gone.
    Missing,
    /// Anything else.
    Other,
}

/// Why a database was not opened. `place` is where it is: for SQLite, its file.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is something, and it is not a database of this program.
    #[error("{place} is not a {what} of sealdisk; it was left as it is: move it away")]
    Foreign {
        /// Where.
        place: String,
        /// What was expected there.
        what: &'static str,
    },
    /// There are tables of somebody else.
    #[error(
        "{place} has tables and is no {what} of sealdisk; it was left as it is: give the {what} a database, or a schema, \
         of its own"
    )]
    Occupied {
        /// Where.
        place: String,
        /// What was expected there.
        what: &'static str,
    },
    /// There is no schema that its tables are, or could be, in.
    #[error("cannot open the {what} {place}: no schema in its search_path is there")]
    NoSchema {
        /// Where.
        place: String,
        /// What was expected there.
        what: &'static str,
    },
    /// It was written by a newer version of this program.
    #[error(
        "the {what} {place} has schema version {found}, this sealdisk knows versions up to {known}; \
         it was left as it is: use the sealdisk version that wrote it, or a newer one"
    )]
    Version {
        /// Where.
        place: String,
        /// What it is.
        what: &'static str,
        /// Its version.
        found: i32,
        /// The version of this program.
        known: i32,
    },
    /// Bringing it up to date would leave a reference without what it refers to.
    #[error(
        "the {what} {place} was not brought up to date: rows of its table {table} refer to what is \
         not there; it was left as it is: restore it from a backup"
    )]
    Reference {
        /// Where.
        place: String,
        /// What it is.
        what: &'static str,
        /// The table.
        table: String,
    },
    /// The file could not be made.
    #[error("cannot create the {what} {path}: {source}")]
    Create {
        /// The file.
        path: PathBuf,
        /// What it was to be.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not said rightly where it is.
    #[error("the address of the {what} is wrong: {why}")]
    Address {
        /// What was to be opened.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The engine failed.
    #[error("cannot open the {what} {place}: {source}")]
    Engine {
        /// Where.
        place: String,
        /// What it is.
        what: &'static str,
        /// What it said.
        #[source]
        source: Error,
    },
}

impl OpenError {
    /// Whether there is no room for it.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Create { source, .. } => lacks_space(source),
            Self::Engine { source, .. } => source.kind() == ErrorKind::Full,
            Self::Foreign { .. }
            | Self::Occupied { .. }
            | Self::NoSchema { .. }
            | Self::Version { .. }
            | Self::Reference { .. }
            | Self::Address { .. } => false,
        }
    }
}

/// Whether a file operation has found no room on the file system.
pub fn lacks_space(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}
