//! Waiting: for what a store completes, and for descriptors beside it.
//!
//! The thread that a store belongs to has more to wait for than completions: the kick of its queue, and others who
//! wake it. It waits for all of these in one place, which is the store's, since only that knows how its own
//! completions come.
//!
//! This is a trait and not one type, so that the same thread can wait on files, on a store process, and in tests on memory.
//! What serves guests is [`DiskStore`](super::DiskStore), which chooses by what a disk is on.

use std::os::fd::RawFd;
use std::time::Duration;

use super::{Store, StoreError};

/// How long to wait for something to happen.
#[derive(Debug, Clone, Copy)]
pub enum Wait {
    /// Only submit.
    No,
    /// Until something happens or the time is over.
    AtMost(Duration),
    /// Until something happens.
    Forever,
}

/// A descriptor that a store watches for readability, as the watcher calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchId(pub u32);

/// A store that its thread waits on.
pub trait WaitingStore: Store {
    /// What it works on.
    type Files;

    /// Reports `id` whenever `fd` (an eventfd) is written to, until [`WaitingStore::unwatch`].
    ///
    /// The watch is edge-triggered, so the eventfd's counter is never read: that would be a system
    /// call for each kick. A counter that is not zero at the start is reported at once, so a kick
    /// that came before is not lost. The file of the descriptor stays open until then.
    ///
    /// # Errors
    /// [`StoreError::Setup`]: it cannot be watched, or too many are.
    fn watch(&mut self, id: WatchId, fd: RawFd) -> Result<(), StoreError>;

    /// Stops reporting `id`.
    fn unwatch(&mut self, id: WatchId);

    /// Submits everything queued and waits as told. What has happened then comes from
    /// [`Store::reap`] and [`WaitingStore::take_events`]; it may be nothing.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not work any more.
    fn enter(&mut self, wait: Wait) -> Result<(), StoreError>;

    /// Whether operations are under way, for which it makes sense to ask again soon.
    fn is_busy(&self) -> bool;

    /// Whether there is something for [`Store::reap`] or [`WaitingStore::take_events`].
    fn has_news(&self) -> bool;

    /// The watches that fired since the last call, into `into`.
    fn take_events(&mut self, into: &mut Vec<WatchId>);

    /// Lets the kernel have at most `most` threads for operations of this store that block, where it has any.
    ///
    /// # Errors
    /// [`StoreError::Setup`].
    fn limit_workers(&mut self, _most: u32) -> Result<(), StoreError> {
        Ok(())
    }

    /// Works on `files` from now on. No operation may be under way.
    ///
    /// # Errors
    /// [`StoreError::Setup`], after which the store cannot be used.
    fn swap_files(&mut self, files: Self::Files) -> Result<(), StoreError>;
}
