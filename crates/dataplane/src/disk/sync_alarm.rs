//! Telling the attach process that a sync has failed, as soon as any thread sees it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use protocol::{DataPlaneEnd, Event, Line};
use volume::Volume;

/// Wakes the main thread when a sync has failed.
pub(crate) struct SyncAlarm {
    raised: AtomicBool,
    told: AtomicBool,
    event: EventFd,
}

impl SyncAlarm {
    /// # Errors
    /// What the kernel says.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            raised: false.into(),
            told: false.into(),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// To be called after a sync of `volume` may have failed.
    pub(crate) fn look(&self, volume: &Volume) {
        if volume.failed_sync().is_some() && !self.raised.swap(true, Ordering::AcqRel) {
            // It cannot overflow: it is written once.
            let _ = self.event.write(1);
        }
    }

    /// Has something to read when the attach process is to be told.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Tells the attach process, once, if a sync of `volume` has failed.
    pub(crate) fn tell(&self, volume: &Volume, control: &DataPlaneEnd) {
        // There is nothing to read when it was not raised.
        let _ = self.event.read();
        let Some(file) = volume.failed_sync() else {
            return;
        };
        if !self.told.swap(true, Ordering::AcqRel) {
            // When the attach process is gone its end of the socket says so next.
            let _ = control.tell(Event::SyncFailed {
                file: file.into(),
                why: Line::of(&volume.why_sync_failed()),
            });
        }
    }
}
