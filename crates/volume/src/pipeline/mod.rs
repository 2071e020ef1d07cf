//! From a block request to ciphertext on the store and back.
//!
//! A [`Pipeline`] belongs to one thread, with its store, its buffers and its cipher. It cuts a
//! request into pieces of at most one buffer, encrypts each from guest memory into a buffer that
//! goes to the store (a write), or decrypts it from the buffer into guest memory (a read), and keeps
//! the order of writes that [`crate`] describes. It never waits: what cannot go on (no
//! buffer, a block in use, a flush under way in another queue) is kept and tried again. So running
//! out of buffers is backpressure, never an error.

#![deny(clippy::disallowed_types)]

mod ahead;
mod alone;
mod complete;
mod disk_io;
mod durable;
mod error;
mod flush;
mod flush_job;
mod issue;
mod outcome;
mod piece;
mod punch;
mod punches;
mod request;
mod scheduler;
#[cfg(test)]
mod tests;

pub use disk_io::{DiskIo, Plaintext};
pub use error::{PipelineError, RequestError};
pub use request::{BlockRequest, Finished, GuestBuffer, RequestKind, Submission, Token};
pub use scheduler::Pipeline;
