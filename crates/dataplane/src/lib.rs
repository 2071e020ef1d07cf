//! The data plane: the process that serves one disk to one guest, as a virtio-blk device over vhost-user.
//!
//! It gets its descriptors and the DEK over a socket from the attach process, confines itself, and then serves
//! one connection after another ([`serve`]). Each virtqueue has a thread of its own that owns the ring, an
//! io_uring, buffers and a cipher; the connection's thread only configures them.
//!
//! Each folder uses only those above it:
//!
//! | Folder | What is in it |
//! |---|---|
//! | `counters` | what a queue counts, and the time of its turns |
//! | `request` | from a descriptor chain to a block request: every check of what a guest says |
//! | `disk` | what all queues share: volume and files, key, limits, memory |
//! | `inflight` | which requests are in flight, in memory that outlives the process |
//! | `queue` | a virtqueue and its thread: chains in, used entries out |
//! | `vhost_user` | the messages of a frontend, and what a driver reads of the device |
//! | `process` | start, confinement, commands of the attach process, the last flush |
//!
//! The `vhost` crate reads and checks the messages. `vhost-user-backend`, which would handle them,
//! is not used: it cannot drain or restart a ring, its worker ends at the first error, and it costs
//! a lock and several system calls an event (see `docs/architecture.md`).

pub mod counters;
mod disk;
mod error;
mod inflight;
mod process;
mod queue;
pub mod request;
mod vhost_user;

pub use disk::memory::{least_memory, ordinary_memory};
pub use error::DataplaneError;
pub use inflight::InflightError;
pub use process::serve::serve;

/// The name of the engine that encrypts disks on this CPU.
///
/// # Errors
/// [`DataplaneError::Key`], [`DataplaneError::Cipher`].
pub fn cipher_engine() -> Result<&'static str, DataplaneError> {
    let dek = keys::Dek::generate()?;
    Ok(xts::Cipher::new(&dek, xts::DataUnit::B4096)?.engine_name())
}

/// What a confined data plane may do, and what is kept from it, with the reasons.
pub fn sandbox_rules() -> Vec<sandbox::Rule> {
    process::confine::rules()
}
