//! A vhost-user-blk frontend for tests, in user space and without a VM.
//!
//! It speaks raw vhost-user messages and owns the split virtqueues byte by byte, so a test can be
//! a well-behaved driver (`client`) or a hostile one (`queue` and `message` expose everything that
//! a guest or a VMM can write). Guest memory is a few memfds with a hole between them.
//!
//! Every wait has a generous limit and panics when it passes: a daemon that hangs fails its test
//! rather than stopping the run.

#![allow(
    missing_docs,
    reason = "what the standards name is called as there: virtio 1.2, and the vhost-user protocol"
)]

pub mod client;
pub mod device;
pub mod dirty_log;
pub mod eventfd;
pub mod inflight;
pub mod memory;
pub mod message;
pub mod queue;
mod region;
pub mod vmm;

/// Bytes of a virtio-blk sector, the unit of `virtio_blk_req.sector` (virtio 1.2 §5.2.4).
pub const SECTOR: usize = 512;
