//! What a correct vhost-user-blk frontend may expect of an attached disk.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/clean.rs"]
#[allow(dead_code, reason = "it is shared with tests that need more of it")]
mod clean;
#[path = "../support/frontend/mod.rs"]
mod frontend;
#[path = "../support/rlimits.rs"]
mod rlimits;
#[path = "../support/seccomp.rs"]
mod seccomp;

mod config;
mod discard;
mod full;
mod host;
mod lifecycle;
mod limits;
mod lost;
mod memory;
mod requests;
mod resize;
mod rings;

const MIB: u64 = 1 << 20;
