//! What the attached disks of a host do right now.
//!
//! All control sockets of a runtime directory are asked at once, each with a deadline ([`ask_all`]). Of two answers of a
//! disk, the differences of what it counts are its rates and its latencies ([`Rates`]). A [`Watcher`] does that again
//! and again, and gives a [`DiskRow`] for each disk.
//!
//! ```text
//! runtime directory ──► ask: a question to each disk ──► watcher: the answer before it ──► rows
//!                                                            └── rates ── histogram
//! ```

mod ask;
mod histogram;
mod rates;
mod row;
mod size;
mod watcher;

pub use ask::{Asked, ask_all, ask_events, names_of};
pub use histogram::Histogram;
pub use rates::{OpRates, Rates};
pub use row::{DiskRow, KeyRow, Standing};
pub use size::size_text;
pub use watcher::Watcher;
