//! The vhost-user side: the messages of the virtual machine monitor, the virtqueues, and the
//! process that serves them.
//!
//! One process serves one disk ([`serve`]). It gets its descriptors and the DEK over a socket from
//! the control process, confines itself, and then serves one connection after another. Each
//! virtqueue has a thread of its own ([`worker`]) that owns the ring, an io_uring, buffers and a
//! cipher; the connection's thread ([`handler`]) only configures them.
//!
//! The `vhost` crate reads and checks the messages. `vhost-user-backend`, which would handle them,
//! is not used: it cannot drain or restart a ring, its worker ends at the first error, and it costs
//! a lock and several system calls an event (see `docs/architecture.md`).

mod backend_channel;
mod config_space;
mod confine;
mod dirty_log;
mod error;
mod guest_memory;
mod handler;
mod key;
mod limits;
mod log_limit;
mod message;
mod polling;
mod queue;
mod ring;
mod serve;
mod shared;
mod stalled;
mod waiter;
mod worker;

pub use error::FrontendError;
pub use limits::Limits;
pub use message::{
    CONTROL_FD, DESTROYED, Discard, DiskFiles, LIMITS, NOT_RESIZED, NOT_RESTORED, OnFull, OnRevoke,
    READY, RESIZE, RESIZED, RESTORE, RESTORED, REVOKE, SOCKET_FD, STORAGE_FULL, STORAGE_OK, Setup,
    Stack, StackLayer, receive_setup, send_setup,
};
pub use serve::serve;
pub use waiter::{Waiter, signal_pipe};
