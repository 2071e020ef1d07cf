//! What the rings do, for the main thread to tell the attach process.

use std::io;
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use protocol::RingsDo;

/// What the thread of a connection has seen the rings do, told once.
pub(crate) struct RingNews {
    /// The last of it, and whether it was told.
    last: Mutex<(RingsDo, bool)>,
    changed: EventFd,
}

impl RingNews {
    /// At the beginning they rest, which is to be told.
    pub(crate) fn new() -> io::Result<Self> {
        let changed = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        changed.write(1)?;
        Ok(Self {
            last: Mutex::new((RingsDo::Rest, false)),
            changed,
        })
    }

    /// Has something to read when there are news.
    pub(crate) fn changed(&self) -> &EventFd {
        &self.changed
    }

    /// This is what they do.
    pub(crate) fn saw(&self, now: RingsDo) {
        // It is replaced as a whole, so one whose holder panicked is whole too.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 != now {
            *last = (now, false);
            // It cannot overflow: it is read whenever it is not zero.
            let _ = self.changed.write(1);
        }
    }

    /// What is to be told now.
    pub(crate) fn take(&self) -> Option<RingsDo> {
        // There is nothing to read when there are none.
        let _ = self.changed.read();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_told = std::mem::replace(&mut last.1, true);
        (!is_told).then_some(last.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_told_once() {
        let news = RingNews::new().unwrap();
        assert_eq!(news.take(), Some(RingsDo::Rest));
        assert_eq!(news.take(), None);
        news.saw(RingsDo::Rest);
        assert!(news.changed().read().is_err());
        news.saw(RingsDo::Wait);
        news.saw(RingsDo::Run);
        assert_eq!(news.take(), Some(RingsDo::Run));
        assert_eq!(news.take(), None);
    }
}
