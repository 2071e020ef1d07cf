//! Key vaults and what depends on them: Azure's clients, vaults over HTTPS and in HSMs, revocation of a running
//! disk's key, backups and recovery, traces.

// Clippy exempts only functions with #[test], and helpers of tests panic as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod alarms;
mod azure;
mod hsm;
mod management;
mod recovery;
mod remote;
mod revocation;
mod traces;
