//! Descriptors that a ring watches beside its operations.

use std::os::fd::RawFd;

/// User data of a watched descriptor has this bit set; that of an operation does not.
pub(super) const WATCH_BIT: u64 = 1 << 63;

/// User data of the removal of a watch, whose completion says nothing.
pub(super) const IGNORED: u64 = WATCH_BIT | (1 << 62);

/// A descriptor that the ring watches for readability, as the watcher calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchId(pub u32);

/// A watched descriptor.
pub(super) struct Watch {
    pub(super) id: WatchId,
    pub(super) fd: RawFd,
}
