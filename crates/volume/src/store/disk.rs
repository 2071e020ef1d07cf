//! The store of a disk, whatever its layers are on.
//!
//! An enum, and neither a type parameter of all that serves a guest nor a trait object. A parameter would compile the
//! pipeline, the queue and all around them twice, for a choice that is made once for a disk. A trait object would be a
//! call that no compiler sees through. This is a branch in each call of a store, always the same one, that a processor has
//! guessed long before; and there is a call or two for each piece of a request, which is encrypted in between.

use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Instant;

use keys::units::LayerIndex;

use super::{
    LaneFiles, LaneStore, StackFiles, Store, StoreCompletion, StoreError, StoreOp, Tag, UringStore,
    Wait, WaitingStore, WatchId,
};

/// What a disk's layers are on, as its stores know it.
#[derive(Debug, Clone)]
pub enum DiskStorage {
    /// Files of this host.
    Files(Arc<StackFiles>),
    /// Another process has them.
    Lanes(LaneFiles),
}

impl From<Arc<StackFiles>> for DiskStorage {
    fn from(files: Arc<StackFiles>) -> Self {
        Self::Files(files)
    }
}

/// The store of one thread.
#[allow(
    clippy::large_enum_variant,
    reason = "each thread has one, in its own pipeline, for as long as it works on a disk"
)]
pub enum DiskStore {
    /// Of files of this host.
    Files(UringStore),
    /// Of a store process.
    Lane(LaneStore),
}

impl From<UringStore> for DiskStore {
    fn from(store: UringStore) -> Self {
        Self::Files(store)
    }
}

impl From<LaneStore> for DiskStore {
    fn from(store: LaneStore) -> Self {
        Self::Lane(store)
    }
}

/// The same call of whichever store it is.
macro_rules! either {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            Self::Files($store) => $call,
            Self::Lane($store) => $call,
        }
    };
}

impl Store for DiskStore {
    fn alignment(&self) -> u64 {
        either!(self, store => store.alignment())
    }

    fn adopt(&mut self, chunk: usize, start: NonNull<u8>, len: usize) {
        either!(self, store => store.adopt(chunk, start, len));
    }

    fn disown(&mut self, chunk: usize) {
        either!(self, store => store.disown(chunk));
    }

    fn mapped(&self, layer: LayerIndex, at: u64, len: usize) -> Option<NonNull<u8>> {
        either!(self, store => store.mapped(layer, at, len))
    }

    fn mapped_to_write(&self, at: u64, len: usize) -> Option<NonNull<u8>> {
        either!(self, store => store.mapped_to_write(at, len))
    }

    fn writes_durably(&self) -> bool {
        either!(self, store => store.writes_durably())
    }

    fn now(&self) -> Instant {
        either!(self, store => store.now())
    }

    fn has_room(&self) -> bool {
        either!(self, store => store.has_room())
    }

    fn submit(&mut self, tag: Tag, op: StoreOp) {
        either!(self, store => store.submit(tag, op));
    }

    fn reap(&mut self, into: &mut Vec<StoreCompletion>) {
        either!(self, store => store.reap(into));
    }
}

impl WaitingStore for DiskStore {
    type Files = DiskStorage;

    fn watch(&mut self, id: WatchId, fd: RawFd) -> Result<(), StoreError> {
        either!(self, store => store.watch(id, fd))
    }

    fn unwatch(&mut self, id: WatchId) {
        either!(self, store => store.unwatch(id));
    }

    fn enter(&mut self, wait: Wait) -> Result<(), StoreError> {
        either!(self, store => store.enter(wait))
    }

    fn is_busy(&self) -> bool {
        either!(self, store => store.is_busy())
    }

    fn has_news(&self) -> bool {
        either!(self, store => store.has_news())
    }

    fn take_events(&mut self, into: &mut Vec<WatchId>) {
        either!(self, store => store.take_events(into));
    }

    fn limit_workers(&mut self, most: u32) -> Result<(), StoreError> {
        either!(self, store => store.limit_workers(most))
    }

    fn swap_files(&mut self, files: DiskStorage) -> Result<(), StoreError> {
        match (self, files) {
            (Self::Files(store), DiskStorage::Files(files)) => store.swap_files(files),
            (Self::Lane(store), DiskStorage::Lanes(files)) => store.swap_files(files),
            _ => Err(StoreError::Setup {
                what: "go over between files and a store process",
                source: std::io::ErrorKind::Unsupported.into(),
            }),
        }
    }
}
