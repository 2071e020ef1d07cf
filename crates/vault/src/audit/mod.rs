//! Tamper-evident logs: who did what with which key, allowed or why not.
//!
//! A log is a chain. Each record has a hash over its content and the hash of the record before it
//! (SHA-256), so that none can be changed, removed, inserted or moved without changing every hash
//! behind it. The hash of the last record, its number and the time are signed (ECDSA P-256) in the
//! transaction that appends: the head. Every [`CHECKPOINT_INTERVAL`] records a signature of another
//! kind, the checkpoint, is kept. The signing key is sealed under a key that is not in the database,
//! so that whoever can only write the database cannot sign a chain of his own.
//!
//! What happens again and again within a short time is counted and recorded as a number
//! ([`Counter`]), and old records are taken out into files that the chain runs through
//! ([`Segment`]).
//!
//! What no log can show by itself is that the whole of it, with its signing key, was put back to an
//! earlier state: for that, checkpoints are exported, kept elsewhere, and verified against.

mod archives;
mod chain;
mod counter;
mod error;
mod event;
mod export;
mod intent;
mod log;
mod seen;
mod segment;
mod signer;
mod space;
mod store;
#[cfg(test)]
mod tests;
mod verify;

pub use archives::{Archives, verify_export};
pub use chain::{Entry, Hash, Head, LogId};
pub use counter::Counter;
pub use error::AuditError;
pub use event::Event;
pub use export::{ExportedLog, Line, export_start, own_segment, read_export, write_export};
pub use intent::Intent;
pub use log::AuditLog;
pub use seen::Seen;
pub use segment::{Archived, Kept, Segment, kept};
pub use signer::PublicKey;
pub use space::{Reserve, Space};
pub use store::{Chain, StoredEntry, TABLES, TABLES_2, TABLES_3};
pub use verify::{Finding, Pin, Report, pins, verify_database};

use time::OffsetDateTime;
use uuid::Uuid;

/// After so many records a signed checkpoint is kept.
pub const CHECKPOINT_INTERVAL: u64 = 1000;

/// A record, and for how long others of its kind are counted after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The record.
    pub record: AuditRecord,
    /// `None` for one that stands for itself.
    pub window: Option<std::time::Duration>,
}

/// For how long refusals of one kind are counted.
pub const REFUSALS: std::time::Duration = std::time::Duration::from_secs(1);

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

impl AuditRecord {
    /// A record of what was done now, with nothing more said about it.
    pub fn new(caller: Uuid, origin: impl ToString, operation: impl Into<String>) -> Self {
        Self {
            time: OffsetDateTime::now_utc(),
            caller,
            origin: origin.to_string(),
            operation: operation.into(),
            key: None,
            version: None,
            disk: None,
            detail: None,
            refusal: None,
        }
    }
}
