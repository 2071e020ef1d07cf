//! What the kernel cannot do for the moment, and when to try it again.

use std::io;
use std::time::{Duration, Instant};

use crate::store::WatchId;
use crate::store::pause::Pause;

/// How often what makes or changes a ring is tried while the kernel lacks memory, and the time between.
const TRIES: u32 = 100;
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// Operations and watches that are begun again later.
#[derive(Default)]
pub(super) struct Again {
    pub(super) slots: Vec<usize>,
    pub(super) watches: Vec<WatchId>,
    /// Why a watch has ended that cannot be begun again.
    pub(super) lost_watch: Option<io::Error>,
    /// When; nothing while there is nothing of all this.
    pub(super) at: Option<Instant>,
    pub(super) pause: Pause,
}

impl Again {
    pub(super) fn note(&mut self, error: &io::Error) {
        if self.at.is_none() {
            self.at = Some(Instant::now() + self.pause.next(error));
        }
    }
}

/// Nothing has happened within the time, or before a signal.
pub(super) fn is_nothing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ETIME) || is_interrupted(error)
}

/// Interrupted before anything was done. Those from 512 on the kernel means for itself (ERESTARTSYS and
/// its like), and lets some of them through.
pub(super) fn is_interrupted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | 512..=514 | 516))
}

/// What passes: no memory for the moment, or too much to do (io_uring_enter(2)).
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
    )
}

/// The kernel had no thread for it, and could not make one (io_wq_enqueue of io-wq.c cancels the operation then): nothing of
/// it was begun. Nobody else cancels operations of a ring.
pub(super) fn is_not_begun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECANCELED)
}

/// Tries what makes or changes a ring again for a while where the kernel only lacks something for now.
pub(super) fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..TRIES {
        match attempt() {
            Err(error) if is_interrupted(&error) || is_transient(&error) => {
                std::thread::sleep(TRY_AGAIN);
            }
            result => return result,
        }
    }
    attempt()
}
