//! `sealdisk backup`.

mod command;
mod secret;

pub use command::{BackupArgs, run};
