//! From a descriptor chain to a block request: everything a guest says is checked here, before
//! anything is done or allocated for it.
//!
//! The rules are virtio 1.2 §2.7 (split virtqueues) and §5.2.6 (block device operation). A guest is
//! an adversary: each byte of guest memory is read once, and what was read is what is checked.

#![deny(clippy::disallowed_types)]

mod chain;
mod descriptors;
mod error;
mod interpret;
mod memory;
#[cfg(test)]
mod tests;

pub use chain::{Chain, ChainLimits, Header, Scratch, read_chain};
pub use descriptors::Descriptors;
pub use error::ChainError;
pub use interpret::{Action, Disk, Status, interpret};
pub use memory::Memory;
