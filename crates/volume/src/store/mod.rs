//! Where ciphertext lives: asynchronous reads, writes, syncs and hole punches on a layer's files.
//!
//! A [`Store`] belongs to one thread, as the queue does that it serves. It owns a buffer from
//! submission to completion, so nothing can touch memory that the kernel is working on. What is
//! above knows neither io_uring nor files: the tests run the same volume code on a simulated store
//! that loses, reorders and tears what was not synced.

#![deny(clippy::disallowed_types)]

mod buffer;
mod disk;
mod error;
mod file;
mod holes;
mod lane;
mod length;
mod locked;
mod mapping;
mod operation;
mod pause;
mod pool;
mod read_at;
mod uring;
mod waiting;
mod witness;

pub use buffer::{BUFFER_LEN, BufferMemory, CHUNK_LEN, IoBuffer, Pages};
pub use disk::{DiskStorage, DiskStore};
pub use error::StoreError;
pub use file::{LayerFile, StackFiles};
pub use holes::{can_punch, next_extent, tells_holes};
pub use lane::{DiskLane, LaneFiles, LaneStore};
pub use length::file_len;
pub use locked::{keep_for_rings, locked_memory_limit};
pub use mapping::DataMapping;
pub use operation::{Store, StoreCompletion, StoreFile, StoreOp, Tag};
pub use pool::{BufferBudget, BufferPool, MAX_CHUNKS, OWN_BUFFERS};
pub use read_at::ReadAt;
pub use uring::{
    BareRing, ENABLE_RINGS, RING_OPERATIONS, RING_REGISTRATIONS, RingRule, UringStore, restrict,
};
pub use waiting::{Wait, WaitingStore, WatchId};
pub use witness::Witness;
