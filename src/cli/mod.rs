//! The command line: the Azure CLI's nouns and options, one line on stderr for every refusal.
//!
//! Each noun is a module with its arguments and a `run(&Context, args)`. Exit status: 0 done,
//! 1 refused or failed, 2 the arguments make no sense. `disk check`, `audit status` and `status` have their own.

mod access;
mod alarm;
mod arm_ids;
mod attach;
mod audit;
mod backup;
mod catalog;
mod completions;
mod cpus;
mod dashboard;
mod des;
mod disk;
mod doctor;
mod error;
mod event_notifier;
mod federation;
mod files;
mod filter;
mod frozen;
mod global;
mod identity;
mod ids;
mod image;
mod key;
mod keyvault;
mod limits;
mod lock;
mod logging;
mod manpages;
mod metrics;
mod named;
mod output;
mod program;
mod progress;
mod reference;
mod role;
mod serve;
mod similar;
mod snapshot;
mod source;
mod status;
mod store_process;
mod top;
mod tracing;
mod units;
mod upgrade;
mod usage;
mod users;
mod version;

pub use error::CliError;
pub use global::Context;
pub use output::{Output, OutputFormat, Tabular};
pub use program::main;
