//! Having everything kept that a frontend sets up, so that the next data plane can go on with it.
//!
//! What is kept is complete whenever no message is being handled ([`Keeper::begin`], [`Keeper::end`]): if this
//! process dies then, the next one takes the connection over, and the frontend does not notice. If it dies in
//! between, nobody knows how far the message got, and the frontend has to connect anew. Who hands over to another
//! process keeps messages from being handled ([`Keeper::hold`]): they wait in the socket for that.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use protocol::{Change, INFLIGHT_AT, KeepSocket, Kept, KeptKey};

/// Where the word is that says that a message is being handled.
const BUSY_AT: usize = 0;

/// Tells the attach process what it is to keep.
pub(crate) struct Keeper {
    socket: KeepSocket,
    /// The beginning of the memory that outlives this process.
    status: MmapRegion<()>,
    /// Something could not be kept.
    incomplete: AtomicBool,
    /// All that is said is kept already.
    restoring: AtomicBool,
    /// Whether a message is being handled, or none may be.
    turn: Mutex<bool>,
    turn_ended: Condvar,
}

impl Keeper {
    /// With this socket, and `region`, which is that of a [`KeptRegion`](protocol::KeptRegion).
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn new(socket: KeepSocket, region: &File) -> io::Result<Self> {
        let at = FileOffset::new(region.try_clone()?, 0);
        let status = MmapRegion::from_file(at, INFLIGHT_AT as usize).map_err(io::Error::other)?;
        Ok(Self {
            socket,
            status,
            incomplete: false.into(),
            restoring: false.into(),
            turn: false.into(),
            turn_ended: Condvar::new(),
        })
    }

    /// While `restore` sets up what is kept, that stays as it is.
    pub(crate) fn while_restoring<T>(&self, restore: impl FnOnce() -> T) -> T {
        self.restoring.store(true, Ordering::Relaxed);
        let restored = restore();
        self.restoring.store(false, Ordering::Relaxed);
        restored
    }

    /// What is kept is not complete from now on. That waits while messages are held.
    pub(crate) fn begin(&self) {
        let turn = self.turn_ended.wait_while(self.turn(), |taken| *taken);
        *turn.unwrap_or_else(PoisonError::into_inner) = true;
        self.set_busy(1);
    }

    /// What is kept is complete again.
    pub(crate) fn end(&self) {
        if !self.incomplete.load(Ordering::Relaxed) {
            self.set_busy(0);
        }
        self.release();
    }

    /// Has no message handled from now on, so that what is kept stays complete.
    ///
    /// # Errors
    /// Why it is not complete within that time.
    pub(crate) fn hold(&self, patience: Duration) -> Result<(), String> {
        let waited = self
            .turn_ended
            .wait_timeout_while(self.turn(), patience, |taken| *taken);
        let (mut turn, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(format!(
                "a message of the frontend is not handled within {patience:?}"
            ));
        }
        if self.incomplete.load(Ordering::Relaxed) {
            return Err("not all that the frontend has set up could be kept".into());
        }
        *turn = true;
        Ok(())
    }

    /// Has messages handled again.
    pub(crate) fn release(&self) {
        *self.turn() = false;
        self.turn_ended.notify_all();
    }

    fn turn(&self) -> MutexGuard<'_, bool> {
        // A panic of any thread ends the process.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a thing kept.
    pub(crate) fn put(&self, kept: Kept, file: Option<BorrowedFd<'_>>) {
        self.send(&Change::Put(kept), file);
    }

    /// Has a thing kept that a file belongs to, if there is one; else it is forgotten.
    pub(crate) fn put_file(&self, kept: Kept, file: Option<&File>) {
        match file {
            Some(file) => self.put(kept, Some(file.as_fd())),
            None => self.send(&Change::Forget(kept.key()), None),
        }
    }

    /// Has a change made that takes something away.
    pub(crate) fn forget(&self, change: Change) {
        self.send(&change, None);
    }

    /// Nothing is kept any more: the connection has ended.
    pub(crate) fn forget_connection(&self) {
        self.incomplete.store(false, Ordering::Relaxed);
        self.send(&Change::Forget(KeptKey::Connection), None);
    }

    fn send(&self, change: &Change, file: Option<BorrowedFd<'_>>) {
        if !self.restoring.load(Ordering::Relaxed)
            && let Err(error) = self.socket.send(change, file)
            && !self.incomplete.swap(true, Ordering::Relaxed)
        {
            log::warn!(
                "the frontend would have to connect anew if this process died, since not all is kept: {error}"
            );
        }
    }

    fn set_busy(&self, busy: u32) {
        let stored = self
            .status
            .get_slice(BUSY_AT, size_of::<u32>())
            .map_err(vm_memory::GuestMemoryError::from)
            .is_ok_and(|word| word.store(busy, 0, Ordering::SeqCst).is_ok());
        debug_assert!(stored, "the page is longer than a word");
    }
}

#[cfg(test)]
mod tests {
    use protocol::KeptRegion;

    use super::*;

    #[test]
    fn what_could_not_be_kept_is_known_until_the_connection_ends() {
        let region = KeptRegion::create(1).unwrap();
        let file = File::from(region.as_fd().try_clone_to_owned().unwrap());
        let (ours, theirs) = KeepSocket::pair(Duration::from_secs(20)).unwrap();
        let keeper = Keeper::new(theirs.into(), &file).unwrap();
        keeper.begin();
        assert!(region.is_busy().unwrap());
        keeper.put(Kept::Connection, Some(file.as_fd()));
        keeper.put_file(Kept::Kick { ring: 0 }, None);
        keeper.end();
        assert!(!region.is_busy().unwrap());
        let received = || ours.receive().unwrap().map(|(change, _)| change);
        assert_eq!(received(), Some(Change::Put(Kept::Connection)));
        assert_eq!(received(), Some(Change::Forget(KeptKey::Kick { ring: 0 })));
        keeper.while_restoring(|| keeper.forget(Change::ForgetSetup));
        keeper.forget(Change::ForgetMemory);
        assert_eq!(received(), Some(Change::ForgetMemory));
        drop(ours);
        keeper.begin();
        keeper.forget(Change::ForgetMemory);
        keeper.end();
        assert!(region.is_busy().unwrap(), "it is not complete");
        keeper.forget_connection();
        keeper.end();
        assert!(region.is_busy().unwrap(), "nobody hears that either");
    }

    #[test]
    fn no_message_is_handled_while_they_are_held() {
        let region = KeptRegion::create(1).unwrap();
        let file = File::from(region.as_fd().try_clone_to_owned().unwrap());
        let (_ours, theirs) = KeepSocket::pair(Duration::from_secs(20)).unwrap();
        let keeper = Keeper::new(theirs.into(), &file).unwrap();
        keeper.begin();
        let soon = Duration::from_millis(20);
        let held = keeper.hold(soon);
        assert!(held.unwrap_err().contains("is not handled within"));
        keeper.end();
        keeper.hold(soon).unwrap();
        std::thread::scope(|scope| {
            let handling = scope.spawn(|| keeper.begin());
            std::thread::sleep(soon);
            assert!(!handling.is_finished() && !region.is_busy().unwrap());
            keeper.release();
        });
        assert!(region.is_busy().unwrap());
    }
}
