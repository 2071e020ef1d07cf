//! Key vaults over HTTPS: what their faults and refusals become.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/frontend/mod.rs"]
mod frontend;
#[path = "../support/key_search/mod.rs"]
mod key_search;

mod faults;
mod gateway;
mod identity;
mod safety;
mod served;
mod server;
