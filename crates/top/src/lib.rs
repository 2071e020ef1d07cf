//! `sealdisk top`: what all attached disks of a host do, as a live table in a terminal, or as plain text.
//!
//! ```text
//! sampler (a thread): live::Watcher ──► snapshots ─┐
//! input (a thread): keys, sizes of the terminal ───┼─► run: App ──► draw: table, a disk's page, help
//! signals (a thread) ──────────────────────────────┘
//! ```
//!
//! | Module | What is in it |
//! |---|---|
//! | `sampler` | The thread that asks the disks, and what it is told |
//! | `app` | What is shown, and what each key does |
//! | `draw` | How it is shown |
//! | `terminal` | The terminal: taken and given back, whatever happens |
//! | `batch` | The same table as plain text |

mod app;
mod batch;
mod column;
mod draw;
mod error;
mod history;
mod input;
mod look;
mod numbers;
mod options;
mod run;
mod sampler;
#[cfg(test)]
mod samples;
mod terminal;
mod view;

pub use batch::{Iteration, iterations, table_text};
pub use column::Column;
pub use error::TopError;
pub use options::Options;
pub use run::run;
pub use view::View;
