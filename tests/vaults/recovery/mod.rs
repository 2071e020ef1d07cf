//! What is lost comes back: backups, a lost catalog, deleted vaults, master keys elsewhere; and the drill
//! of docs/disaster-recovery.md.

mod attached;
mod authority;
mod backups;
mod catalog;
mod drill;
mod master;
mod segments;
mod support;
mod tpm;
mod vaults;
