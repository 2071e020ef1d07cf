//! The parts of a volume, of a cipher and of a lane by which threads, and a process after another, meet: gone through in
//! every order of their steps, and with every value that a processor may show a thread (loom).
//!
//! The files are those of `volume`, one of `xts` and one of `store-ring`. What stands in here for the rest of that crate is
//! small: atomics of loom (`sync`), a map of a few sectors (`mapped`, `format`) and its file (`store`). So nothing else has
//! to be compiled for loom. [`checks`] says what must be true.

// What the checks do not call is called in `volume`; helpers of tests panic as tests do.
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

pub mod checks;
mod format;
mod frozen;
mod mapped;
mod must_complete;
mod store;
mod sync;

#[path = "../../store-ring/src/bell.rs"]
mod bell;
#[path = "../../xts/src/meeting.rs"]
mod meeting;

#[path = "../../volume/src/durable_writes.rs"]
mod durable_writes;
#[path = "../../volume/src/flushes.rs"]
mod flushes;
#[path = "../../volume/src/map/mod.rs"]
mod map;
#[path = "../../volume/src/marks.rs"]
mod marks;
#[path = "../../volume/src/notes.rs"]
mod notes;
#[path = "../../volume/src/state.rs"]
mod state;

use state::BlockState;
use store::VolumeError;
