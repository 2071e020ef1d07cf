//! `sealdisk keyvault serve`, as its clients see it: Azure's own SDKs, and clients that mean harm.

// The lint allows these in the test functions themselves, but not in what they share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
mod crash;
mod hostile;
mod recorded;
mod rules;
mod sdk;
mod served;
mod tokens;
