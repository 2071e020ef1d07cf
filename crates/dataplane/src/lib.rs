//! The vhost-user side: the messages of the virtual machine monitor, the virtqueues, and the
//! process that serves them.
//!
//! One process serves one disk ([`serve`]). It gets its descriptors and the DEK over a socket from
//! the control process, confines itself, and then serves one connection after another. Each
//! virtqueue has a thread of its own (`worker`) that owns the ring, an io_uring, buffers and a
//! cipher; the connection's thread (`handler`) only configures them.
//!
//! The `vhost` crate reads and checks the messages. `vhost-user-backend`, which would handle them,
//! is not used: it cannot drain or restart a ring, its worker ends at the first error, and it costs
//! a lock and several system calls an event (see `docs/architecture.md`).

mod backend_channel;
mod config_space;
mod confine;
mod copier;
mod dirty_log;
mod error;
mod freeze;
mod guest_memory;
mod handler;
mod key;
mod limiter;
mod log_limit;
mod map_scan;
mod memory;
mod notifier;
mod polling;
mod queue;
pub mod request;
mod ring;
mod serve;
mod shared;
mod sharing;
mod stalled;
mod standing;
mod sync_alarm;
mod worker;

pub use error::FrontendError;
pub use memory::{least_memory, ordinary_memory};
pub use serve::serve;
