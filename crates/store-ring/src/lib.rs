//! Rings in shared memory, by which a data plane has I/O done by another process.
//!
//! A data plane has keys and the memory of a guest, and no network. Where layers of a disk are not files of its host,
//! a *store process* does the I/O, which has a network and none of the two. Both map the same memory, which has
//! ciphertext and, for each thread of the data plane that does I/O, a *lane*: a ring of submissions and a ring of
//! completions. Beside it a lane has two eventfds, by which either side wakes the other. There is no socket between them.
//!
//! [`ClientLane`] is the data plane's side of a lane, [`ServerLane`] the store process's; [`LaneMemory`] is the memory.
//! docs/rbd.md has the layout, byte by byte, and the order of loads and stores.
//!
//! # Two adversaries
//!
//! A guest that escapes owns the data plane, and who answers over a network may come to own the store process. So neither
//! side believes the other: each word is loaded once, checked, and what counts is kept in memory of its own. Offsets come
//! from numbers that a third process has told ([`Layout`]), and are never read from the memory. The memory cannot be
//! made shorter, which would end whoever touches it. What breaks the rules is a [`RingError::Violation`], after which
//! nothing more is to be done with the lane; that of which the rules say nothing, such as never to answer, is a peer that
//! hangs. Bytes in buffers may change at any time: they are ciphertext, and storage may lie anyway.
//!
//! What is not kept from a hostile side is what belongs to the two alone: it can have its own I/O done wrongly.

mod bell;
mod client;
mod entry;
mod error;
mod lanes;
mod layout;
mod lent;
mod memory;
mod server;
mod sync;
#[cfg(test)]
mod tests;

pub use client::{ClientLane, Completion};
pub use entry::{Data, Operation, Target};
pub use error::{RingError, Side};
pub use lanes::LaneBells;
pub use layout::{BUFFER_LEN, CHUNK_LEN, DEPTH, Layout, SECTOR_LEN, SMALL_LEN};
pub use lent::{LaneMemory, Lent};
pub use server::{ServerLane, Taken};
