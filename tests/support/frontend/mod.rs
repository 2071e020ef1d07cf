//! A vhost-user-blk frontend for tests, in user space and without a VM.
//!
//! It speaks raw vhost-user messages and owns the split virtqueues byte by byte, so a test can be
//! a well-behaved driver (`client`) or a hostile one (`queue` and `message` expose everything that
//! a guest or a VMM can write). Guest memory is a few memfds with a hole between them.
//!
//! Every wait has a generous limit and panics when it passes: a daemon that hangs fails its test
//! rather than stopping the run.

// Each test binary uses its own part of this module.
#![allow(dead_code)]

pub mod client;
pub mod daemon;
pub mod device;
pub mod eventfd;
pub mod memory;
pub mod message;
pub mod queue;
pub mod rng;
pub mod small_fs;

use std::time::Duration;

/// How long anything may take before a test calls it a hang.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of a virtio-blk sector, the unit of `virtio_blk_req.sector` (virtio 1.2 §5.2.4).
pub const SECTOR: usize = 512;
