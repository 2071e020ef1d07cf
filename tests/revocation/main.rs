//! Revocation that reaches a running disk: the real attach process, data plane and vault, and a
//! frontend in user space instead of a guest.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/frontend/mod.rs"]
mod frontend;
#[path = "../support/key_search/mod.rs"]
mod key_search;

mod audit;
mod captured;
mod customer;
mod death;
mod full;
mod load;
mod memory;
mod modes;
mod no_space;
mod reasons;
mod watching;

const MIB: u64 = 1 << 20;
