//! Descriptors that a ring watches beside its operations.

use std::io;

use io_uring::types::Fixed;

use crate::store::{StoreError, WatchId};

use super::entry::MAX_FILES;

/// User data of a watched descriptor has this bit set; that of an operation does not.
pub(super) const WATCH_BIT: u64 = 1 << 63;

/// User data of the removal of a watch, whose completion says nothing.
pub(super) const IGNORED: u64 = WATCH_BIT | (1 << 62);

/// Descriptors that a ring can watch at once.
pub(super) const MAX_WATCHES: usize = 8;

/// A descriptor that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Watch {
    pub(super) id: WatchId,
    place: usize,
}

impl Watch {
    /// Under which number its descriptor is registered: after the files of the stack.
    pub(super) fn file(self) -> Fixed {
        Fixed((MAX_FILES + self.place) as u32)
    }
}

/// What is watched, each in a place of its own.
#[derive(Debug, Default)]
pub(super) struct Watches([Option<WatchId>; MAX_WATCHES]);

impl Watches {
    pub(super) fn get(&self, id: WatchId) -> Option<Watch> {
        let place = self.0.iter().position(|taken| *taken == Some(id))?;
        Some(Watch { id, place })
    }

    /// Gives it a place.
    ///
    /// # Errors
    /// [`StoreError::Setup`] when none is free.
    pub(super) fn add(&mut self, id: WatchId) -> Result<Watch, StoreError> {
        let free = self.0.iter().position(Option::is_none);
        let place = free.ok_or_else(|| StoreError::Setup {
            what: "watch one more descriptor with io_uring",
            source: io::ErrorKind::QuotaExceeded.into(),
        })?;
        self.0[place] = Some(id);
        Ok(Watch { id, place })
    }

    /// Which there are.
    pub(super) fn ids(&self) -> Vec<WatchId> {
        self.0.iter().flatten().copied().collect()
    }

    pub(super) fn remove(&mut self, id: WatchId) -> Option<Watch> {
        let watch = self.get(id)?;
        self.0[watch.place] = None;
        Some(watch)
    }
}
