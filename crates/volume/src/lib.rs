//! The disk as a stack of layers: for each 4 KiB block, where its content is.
//!
//! A layer is a sparse `data` file of ciphertext, in which the guest's offset is the file's offset,
//! and a `map` file with two bits a block ([`BlockState`]; layout in [`mod@format`]). What is above asks
//! for the state of a run of blocks and tells what became of it; it never sees files.
//!
//! # Order of writes
//!
//! The durable map must never run ahead of the data, or a block that was never written would be
//! decrypted. So there are two maps: the *current* one, in memory that outlives the process (a
//! mapped file on tmpfs, [`RuntimeMap`]), and the *durable* one in the `map` file.
//!
//! - A write: ciphertext to `data`; when that has completed, the current map says `Data`; then the
//!   guest is told. If we die after any of these steps, the current map is still there and true.
//!   If the power goes, the durable map counts, and it says what was flushed.
//! - A write into blocks that have data already, of a data file that is memory and mapped: the ciphertext of each
//!   block goes into a slot of the runtime map's file first, and from there into the data file, so that a
//!   kill between two stores leaves no block that is neither old nor new (module `redo` has the steps).
//! - A flush: copy the changed sectors of the current map; sync `data` (each block that the copy
//!   calls `Data` was completely written before); write the copy into `map`; sync `map`. A crash
//!   between any two leaves sectors of the durable map old or new, each true by itself: a block is
//!   called `Data` only after its data was synced.
//! - A sync that fails, of either file, ends this for good: the kernel may have dropped what it could
//!   not write, and would say so only once. It is noted beside the current map before anybody is told
//!   ([`FailedSync`]), and no flush succeeds any more, in this process or in a later one.
//! - A flush is for all queues: requests that come while one runs share the next ([`Flushes`]). It writes the map, and
//!   ends well, only when no durable write of any queue has failed that began before its syncs ended
//!   ([`DurableWrites`]).
//! - A write that is to be durable by itself, into blocks that the durable map calls `Data` already, is
//!   one durable write: it changes nothing in any map. The blocks are marked, so that no discard comes
//!   between the look at the map and the end of the write. Everything else that is to be durable is
//!   followed by a flush.
//! - A discard: the current map says `ZeroHeld`, which reads as zeros; its space is given back only
//!   after a flush made that durable, and never while the block is used or was written again. A
//!   crash before leaves the old content, one after leaves zeros: `ZeroHeld` is kept in the durable
//!   map too, so the space is given back later. Where old ciphertext is to be overwritten, that
//!   comes, with a flush after it, before the hole: no request reads there any more, and a crash leaves
//!   `ZeroHeld`, after which it is done again.
//! - Whether the durable map says zero is known by the map sector: each has the number of the flush that
//!   makes the last discard in it durable. While a block is marked and `ZeroHeld`, and that flush is
//!   done, the durable map calls it zero, and so does every flush under way: to become anything else
//!   first, and to be discarded again, it would have moved that number. Holes are made in the background
//!   by one queue at a time, and none makes its sector dirty: the durable map says `ZeroHeld` of what is
//!   free by now, which is true enough, until some flush has an occasion to write the sector.
//! - Growing: `data` is made longer and synced; `map` is made longer and synced; the disk's header
//!   says the new size (it alone decides); the runtime map is made longer and stamped with the new
//!   size; then guests are served the new size. A crash before the header leaves files that are
//!   longer than the disk, by what was never written to: they are taken as they are. One after it
//!   leaves a runtime map of the old size, which counts: what it does not reach was never served.
//!   The rest of a last block that was not whole is encrypted zeros already, or zeros by the map.

#![deny(clippy::disallowed_types)]

mod durable_writes;
mod error;
mod failed_sync;
mod flushes;
pub mod format;
mod frozen;
mod geometry;
mod layer;
mod map;
mod mapped;
mod marks;
pub mod must_complete;
mod notes;
mod past_caches;
pub mod pipeline;
mod redo;
mod runtime;
mod stack;
mod state;
pub mod store;
mod sync;

pub use durable_writes::{BegunWrites, DurableWrite, DurableWrites};
pub use error::VolumeError;
pub use failed_sync::FailedSync;
pub use flushes::{FlushNumber, FlushTurn, Flushes, PunchTurn};
pub use frozen::share_maps_up_to;
pub use geometry::{Geometry, MAX_DISK_SIZE};
pub use layer::{
    LayerPaths, SectorStates, check_data_file, check_map_file, create_layer, examine_map,
    grow_layer, set_length,
};
pub use map::{BlockMap, Content, MapFile, Run};
pub use mapped::{HeldWords, Mapped};
pub use marks::{BlockMark, BlockMarks, MAX_BLOCKS, Wanted};
pub use runtime::{CacheMode, Found, RuntimeMap, boot_id};
pub use stack::{LayerMap, LowerLayer, Missing, Source, Volume};
pub use state::BlockState;
