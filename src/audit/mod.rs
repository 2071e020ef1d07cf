//! Tamper-evident logs: who did what with which key, allowed or why not.
//!
//! A log is a chain. Each record has a hash over its content and the hash of the record before it
//! (SHA-256), so that none can be changed, removed, inserted or moved without changing every hash
//! behind it. The hash of the last record, its number and the time are signed (ECDSA P-256) in the
//! transaction that appends: the head. Every [`CHECKPOINT_INTERVAL`] records a signature of another
//! kind, the checkpoint, is kept. The signing key is sealed under a key that is not in the database,
//! so that whoever can only write the database cannot sign a chain of his own.
//!
//! What no log can show by itself is that the whole of it, with its signing key, was put back to an
//! earlier state: for that, checkpoints are exported, kept elsewhere, and verified against.

mod chain;
mod error;
mod export;
mod log;
mod seen;
mod signer;
mod store;
#[cfg(test)]
mod tests;
mod verify;

pub use chain::{Entry, Hash, Head, LogId};
pub use error::AuditError;
pub use export::{ExportedLog, Line, read_export, write_export};
pub use log::AuditLog;
pub use seen::Seen;
pub use signer::PublicKey;
pub use store::{Chain, TABLES};
pub use verify::{Finding, Pin, Report, pins, verify_database, verify_export};

use time::OffsetDateTime;
use uuid::Uuid;

/// After so many records a signed checkpoint is kept.
pub const CHECKPOINT_INTERVAL: u64 = 1000;

/// What happened, as it is appended to a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// When, in UTC.
    pub time: OffsetDateTime,
    /// The identity that asked.
    pub caller: Uuid,
    /// Where it asked from.
    pub origin: String,
    /// What it asked for, with the names of Azure's log: `KeyWrap`, `KeyUnwrap`, `KeyGet`, …
    pub operation: String,
    /// The key, where one is concerned: its name in a vault's log, its URL in the installation's.
    pub key: Option<String>,
    /// The version that was named or used.
    pub version: Option<String>,
    /// The disk, where one is concerned.
    pub disk: Option<String>,
    /// What exactly was to be changed, where something was.
    pub detail: Option<String>,
    /// `None` when it was allowed and done, else the code of the refusal.
    pub refusal: Option<String>,
}
