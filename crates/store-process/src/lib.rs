//! The process that does the I/O of a disk for a data plane, which has keys and a guest and no network.
//!
//! It shares memory with the data plane ([`store_ring`]) and has a socket to the process that has started it, by which it
//! is told what it works on, and whose lanes it serves ([`StoreProcess`]). It sees ciphertext alone. What does the
//! I/O is a [`Backend`]: images of a Ceph cluster, or files of this host. A cluster is a [`Place`] of disks, too, and only this
//! process speaks with it.
//!
//! One process is for one disk, and serves one data plane after another. docs/rbd.md says what follows when one of them
//! dies.

mod backend;
mod channel;
mod client;
mod confine;
mod engine;
mod error;
mod eventfd;
mod files;
mod messages;
mod place;
mod rbd;
mod serve;
mod session;

pub use backend::{Backend, Bytes, Outcome, Token};
pub use client::{MAX_LANES, STORE_PROCESS, STORE_PROCESS_LAUNCHER, StoreProcess};
pub use error::StoreProcessError;
pub use files::FileBackend;
pub use messages::{ClientOf, LayerOf, PoolOf, State};
pub use place::{
    MAX_HEADER_LEN, MAX_LISTED, MAX_TEXT_LEN, MemoryPlace, NewLayer, Place, PlaceError,
};
pub use rbd::{DATA_AT, MAP_AT};
pub use serve::{CONTROL_FD, serve};
