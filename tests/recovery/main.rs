//! What is lost comes back: backups, a lost catalog, deleted vaults, master keys elsewhere; and the drill
//! of docs/disaster-recovery.md.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the lint's exception for tests does not reach functions that tests call"
)]

#[path = "../disk_support/mod.rs"]
mod disk_support;

mod authority;
mod backups;
mod catalog;
mod drill;
mod master;
mod segments;
mod support;
mod tpm;
mod vaults;
