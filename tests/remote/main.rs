//! Key vaults over HTTPS: what their faults and refusals become.

#![allow(
    clippy::unwrap_used,
    reason = "the lint's exception for tests does not reach functions that tests call"
)]

mod faults;
mod identity;
mod server;
