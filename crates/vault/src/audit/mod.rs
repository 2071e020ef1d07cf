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

mod archive;
mod archives;
mod chain;
mod counter;
mod encoding;
mod entry;
mod error;
mod essential;
mod event;
mod export;
mod intent;
mod line;
mod log;
mod record;
mod seen;
mod segment;
mod signer;
mod space;
mod store;
#[cfg(test)]
mod tests;
mod verifier;
mod verify;

pub use archive::{Archived, Kept, kept};
pub use archives::{Archives, verify_export};
pub use chain::Chain;
pub use counter::Counter;
pub use encoding::Hash;
pub use entry::{CHECKPOINT_INTERVAL, Entry, Head, LogId, StoredEntry};
pub use error::AuditError;
pub use event::Event;
pub use export::write_export;
pub use intent::Intent;
pub use line::{ExportedLog, Line, export_start, own_segment, read_export};
pub use log::AuditLog;
pub use record::{AuditRecord, Counted, REFUSALS};
pub use seen::Seen;
pub use segment::Segment;
pub use signer::PublicKey;
pub use space::{Reserve, Space};
pub use store::{
    APPENDING, POSTGRES_TABLES, TABLES, TABLES_2, TABLES_3, last_record, visit_records,
};
pub use verifier::{Finding, Pin, Report, pins};
pub use verify::verify_database;
