//! `sealdisk audit`.

mod archive;
mod command;
mod entry;
mod export;
mod log;
mod verify;

pub use command::{AuditArgs, run};
pub use entry::EntryView;
