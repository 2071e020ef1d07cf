//! An attached disk as a guest and its VMM see it, without a VM: a frontend in user space that behaves, one
//! that does not, kills and failing devices under it.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod crash;
mod failed_sync;
mod hostile;
mod metrics;
mod migration;
mod protocol;
mod shared;
mod store_process;
mod supervise;
mod top;
mod upgrade;

const MIB: u64 = 1 << 20;
