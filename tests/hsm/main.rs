//! Vaults whose private keys are in a token behind PKCS#11, on SoftHSM 2.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/frontend/mod.rs"]
mod frontend;

mod faults;
mod keys;
mod served;
mod token;
mod workflow;
