//! What an error of PostgreSQL means.

use std::error::Error as _;
use std::io;

use postgres::error::SqlState;

use crate::error::{Error, ErrorKind};

/// What an error means, in a statement as in a connection that is begun.
pub(super) fn failed(error: &postgres::Error) -> Error {
    if let Some(said) = error.as_db_error() {
        let message = format!("{}: {}", said.severity(), said.message());
        return Error::new(kind_of(said.code()), message);
    }
    let mut message = error.to_string();
    let mut kind = match error.is_closed() {
        true => ErrorKind::Lost,
        false => ErrorKind::Other,
    };
    let mut source = error.source();
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            kind = match io.kind() {
                // Of TLS.
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => ErrorKind::Other,
                io::ErrorKind::PermissionDenied if message.contains(NO_WRITES) => {
                    ErrorKind::ReadOnly
                }
                io::ErrorKind::PermissionDenied => ErrorKind::Other,
                _ => ErrorKind::Lost,
            };
        }
        source = cause.source();
    }
    Error::new(kind, message)
}

/// How the client says that all servers are read-only.
const NO_WRITES: &str = "does not allow writes";

fn kind_of(code: &SqlState) -> ErrorKind {
    match *code {
        SqlState::UNIQUE_VIOLATION => ErrorKind::Unique,
        SqlState::FOREIGN_KEY_VIOLATION => ErrorKind::ForeignKey,
        SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED => {
            ErrorKind::Overtaken
        }
        SqlState::LOCK_NOT_AVAILABLE | SqlState::QUERY_CANCELED => ErrorKind::Busy,
        SqlState::READ_ONLY_SQL_TRANSACTION => ErrorKind::ReadOnly,
        SqlState::DISK_FULL => ErrorKind::Full,
        SqlState::UNDEFINED_TABLE | SqlState::INVALID_SCHEMA_NAME => ErrorKind::Missing,
        SqlState::ADMIN_SHUTDOWN
        | SqlState::CRASH_SHUTDOWN
        | SqlState::CANNOT_CONNECT_NOW
        | SqlState::TOO_MANY_CONNECTIONS
        | SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT
        | SqlState::CONNECTION_FAILURE
        | SqlState::CONNECTION_DOES_NOT_EXIST
        | SqlState::CONNECTION_EXCEPTION => ErrorKind::Lost,
        _ => ErrorKind::Other,
    }
}
