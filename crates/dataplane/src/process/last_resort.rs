//! What this process does by itself when nobody else can end it: its keys must not outlive whoever guards them.
//!
//! The attach process guards the key. When it dies, there is nobody who would tell of a revocation, so this process
//! ends; and when it is told to destroy the key, it has to come to that. Either can hang, with the storage. The attach
//! process or the launcher kills it then. This is for when they are dead themselves, or may not.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::Duration;

use protocol::{DataPlaneEnd, Waiter};

/// How long the keys may stay after the attach process has died, or after it was told to destroy them: somewhat longer
/// than others wait before they kill this process.
const PATIENCE: Duration = Duration::from_secs(35);

/// Has this process end, however far it is, when the attach process has been dead for so long. That it ends in order
/// before is the main thread's part, which hears of the death too. `control` must stay open.
///
/// # Errors
/// What the kernel says.
pub(super) fn end_after_the_attach_process(control: &DataPlaneEnd) -> io::Result<()> {
    let waiter = Waiter::new()?;
    // Not when that only says that there are no more commands: it waits for the last flush then.
    waiter.watch_end(control, 0)?;
    let wait = move || {
        if let Err(error) = waiter.wait() {
            return log::warn!("the death of the attach process is not watched for: {error}");
        }
        std::thread::sleep(PATIENCE);
        abort("the attach process has died, and this one cannot end");
    };
    let thread = Builder::new().name("attach-gone".into());
    thread.spawn(wait).map(drop)
}

/// The time in which a key has to be destroyed, until it is dropped.
pub(super) struct Bound {
    _done: Sender<()>,
}

impl Bound {
    /// From now on. Without a thread for it there is none: whoever has told waits for so long too.
    pub(super) fn begin() -> Self {
        Self::within(PATIENCE, || abort("a revoked key is still in use"))
    }

    fn within(patience: Duration, over: impl FnOnce() + Send + 'static) -> Self {
        let (done, ended) = channel();
        let wait = move || {
            if ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                over();
            }
        };
        let thread = Builder::new().name("key-bound".into()).spawn(wait);
        if let Err(error) = thread {
            log::warn!("it is not watched how long a key takes to be destroyed: {error}");
        }
        Self { _done: done }
    }
}

fn abort(why: &str) {
    log::error!("{why}; the process ends, and with it its keys: every completed write is kept");
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn what_takes_too_long_is_over_and_what_is_done_is_not() {
        let (told, tells) = channel();
        let bound = |patience, told: &Sender<&'static str>, what| {
            let told = told.clone();
            Bound::within(patience, move || {
                let _ = told.send(what);
            })
        };
        drop(bound(Duration::from_millis(200), &told, "done"));
        let _late = bound(Duration::ZERO, &told, "late");
        let soon = Duration::from_secs(30);
        assert_eq!(tells.recv_timeout(soon), Ok("late"));
        let more = tells.recv_timeout(Duration::from_millis(400));
        assert_eq!(more, Err(RecvTimeoutError::Timeout));
    }
}
