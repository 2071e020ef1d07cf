//! Whether the host's storage is full, and when the attach process is told so.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use protocol::Event;

/// How long no request must have waited before the storage is said to have space: a guest that
/// writes and discards at the edge must not fill the host's log, nor drive other events away.
const SETTLED: Duration = Duration::from_secs(5);

/// Whether any queue of the disk has requests that wait for space.
pub(crate) struct FullStorage {
    queues: AtomicUsize,
    changed: EventFd,
}

impl FullStorage {
    /// No queue has any yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            queues: AtomicUsize::new(0),
            changed: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Has something to read when the answer of [`FullStorage::is_full`] may have changed.
    pub(crate) fn changed(&self) -> &EventFd {
        &self.changed
    }

    /// Whether requests wait. Later changes are reported again.
    pub(crate) fn is_full(&self) -> bool {
        // There is nothing to read when it did not change.
        let _ = self.changed.read();
        self.queues.load(Ordering::Acquire) > 0
    }

    pub(crate) fn enter(&self) {
        if self.queues.fetch_add(1, Ordering::AcqRel) == 0 {
            // It cannot overflow: it is read whenever it is not zero.
            let _ = self.changed.write(1);
        }
    }

    pub(crate) fn leave(&self) {
        if self.queues.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _ = self.changed.write(1);
        }
    }
}

/// What the attach process was told of the storage.
#[derive(Default)]
pub(crate) struct StorageNews {
    told_full: bool,
    /// Since when no request waits, while the attach process still believes that some do.
    ok_since: Option<Instant>,
}

impl StorageNews {
    /// What the attach process is to be told now, if anything.
    pub(crate) fn look(&mut self, full: bool, now: Instant) -> Option<Event> {
        if full {
            self.ok_since = None;
            return match std::mem::replace(&mut self.told_full, true) {
                true => None,
                false => Some(Event::StorageFull),
            };
        }
        if !self.told_full {
            return None;
        }
        let since = *self.ok_since.get_or_insert(now);
        if now.saturating_duration_since(since) < SETTLED {
            return None;
        }
        *self = Self::default();
        Some(Event::StorageOk)
    }

    /// When to look again, though nothing may have happened.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.ok_since.map(|since| since + SETTLED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_told_when_it_has_lasted() {
        let mut news = StorageNews::default();
        let start = Instant::now();
        assert_eq!(news.look(false, start), None);
        assert_eq!(news.look(true, start), Some(Event::StorageFull));
        assert_eq!(news.look(true, start), None);
        assert_eq!(news.deadline(), None);
        assert_eq!(news.look(false, start), None);
        assert_eq!(news.deadline(), Some(start + SETTLED));
        // Full once more before that.
        assert_eq!(news.look(true, start + SETTLED / 2), None);
        assert_eq!(news.deadline(), None);
        assert_eq!(news.look(false, start + SETTLED), None);
        assert_eq!(
            news.look(false, start + SETTLED * 2),
            Some(Event::StorageOk)
        );
        assert_eq!(news.look(false, start + SETTLED * 3), None);
        assert_eq!(news.deadline(), None);
    }
}
