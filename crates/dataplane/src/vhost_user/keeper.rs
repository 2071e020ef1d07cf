//! Having everything kept that a frontend sets up, so that the next data plane can go on with it.
//!
//! What is kept is complete whenever no message is being handled ([`Keeper::begin`], [`Keeper::end`]): if this
//! process dies then, the next one takes the connection over, and the frontend does not notice. If it dies in
//! between, nobody knows how far the message got, and the frontend has to connect anew.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

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
        })
    }

    /// While `restore` sets up what is kept, that stays as it is.
    pub(crate) fn while_restoring<T>(&self, restore: impl FnOnce() -> T) -> T {
        self.restoring.store(true, Ordering::Relaxed);
        let restored = restore();
        self.restoring.store(false, Ordering::Relaxed);
        restored
    }

    /// What is kept is not complete from now on.
    pub(crate) fn begin(&self) {
        self.set_busy(1);
    }

    /// What is kept is complete again.
    pub(crate) fn end(&self) {
        if !self.incomplete.load(Ordering::Relaxed) {
            self.set_busy(0);
        }
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
    use std::time::Duration;

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
}
