//! Signalling an eventfd of the frontend's without ever waiting for its reader.
//!
//! A write to an eventfd whose counter is full waits until it is read, unless the file
//! description is non-blocking. That flag is the frontend's as much as ours, since it has the same
//! description: setting it changes how *its* reads behave, and it can take it back at any time. So
//! nothing is written here. An io_uring of its own has the eventfd registered, and the kernel signals
//! that with each completion, as it signals one of its own: a counter that is full stays full, which
//! says all that there is to say. One empty operation is one signal, and one system call, as a write
//! would be. The ring was made before the process was confined, and does nothing else.
//!
//! The kernel registers nothing that is not an eventfd. A pipe, a file of a hung file system or
//! whatever else a frontend may send for one is refused with that.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode};

use crate::disk::rings::SignalRings;

/// How long the kernel may refuse an empty operation for want of memory, before a signal is given up.
const PATIENCE: Duration = Duration::from_secs(1);

/// Signals one eventfd.
pub(crate) struct Notifier {
    ring: ManuallyDrop<IoUring>,
    rings: Arc<SignalRings>,
}

impl Notifier {
    /// For this eventfd, which may be closed afterwards, with one of these rings.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a descriptor that is none, and what else the kernel says.
    pub(crate) fn new(rings: &Arc<SignalRings>, eventfd: &impl AsFd) -> io::Result<Self> {
        let ring = rings.take()?;
        let eventfd = eventfd.as_fd().as_raw_fd();
        if let Err(error) = ring.submitter().register_eventfd(eventfd) {
            rings.put(ring);
            return Err(error);
        }
        Ok(Self {
            ring: ManuallyDrop::new(ring),
            rings: rings.clone(),
        })
    }

    /// Adds one to the counter, if it is not full; whether it could.
    pub(crate) fn signal(&mut self) -> bool {
        let nothing = opcode::Nop::new().build();
        // SAFETY: the operation names no memory and no descriptor. There is always room for it: the
        // one before it was submitted, or is still there and does as well.
        let _ = unsafe { self.ring.submission().push(&nothing) };
        let submitted = self.submit();
        if let Err(error) = &submitted {
            log::error!("a descriptor of the frontend cannot be signalled: {error}");
        }
        // It has completed by now; its completion only has to make room.
        self.ring.completion().for_each(drop);
        submitted.is_ok()
    }

    fn submit(&self) -> io::Result<()> {
        let start = Instant::now();
        loop {
            match self.ring.submit() {
                Err(error) if is_transient(&error) && start.elapsed() < PATIENCE => {
                    std::thread::yield_now();
                }
                result => return result.map(drop),
            }
        }
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        // SAFETY: nothing uses the field after this.
        let ring = unsafe { ManuallyDrop::take(&mut self.ring) };
        match ring.submitter().unregister_eventfd() {
            Ok(()) => self.rings.put(ring),
            Err(error) => log::warn!("a ring for signals is lost: {error}"),
        }
    }
}

/// Whether the same call may succeed a moment later.
fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    fn rings() -> Arc<SignalRings> {
        Arc::new(SignalRings::make(1).unwrap())
    }

    fn file(eventfd: &EventFd) -> File {
        // SAFETY: a descriptor that was just duplicated, and that nobody else owns.
        let duplicate = unsafe { std::os::fd::BorrowedFd::borrow_raw(eventfd.as_raw_fd()) };
        duplicate.try_clone_to_owned().unwrap().into()
    }

    #[test]
    fn each_signal_counts_once() {
        let eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut notifier = Notifier::new(&rings(), &file(&eventfd)).unwrap();
        assert!(eventfd.read().is_err(), "nothing was signalled yet");
        for count in [1, 3, 1000] {
            (0..count).for_each(|_| assert!(notifier.signal()));
            assert_eq!(eventfd.read().unwrap(), count);
        }
    }

    #[test]
    fn a_full_counter_of_a_blocking_descriptor_keeps_nobody_waiting() {
        let eventfd = EventFd::new(0).unwrap();
        let mut notifier = Notifier::new(&rings(), &file(&eventfd)).unwrap();
        eventfd.write(u64::MAX - 1).unwrap();
        (0..10).for_each(|_| assert!(notifier.signal()));
        // The kernel's own signals may go one further than a write: it then says overflow.
        assert!(eventfd.read().unwrap() >= u64::MAX - 1);
    }

    #[test]
    fn nothing_but_an_eventfd_is_taken() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"x").unwrap();
        let rings = rings();
        assert!(Notifier::new(&rings, &reader).is_err());
        assert!(Notifier::new(&rings, &writer).is_err());
        assert!(Notifier::new(&rings, &tempfile::tempfile().unwrap()).is_err());
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Notifier::new(&rings, &socket).is_err());
    }

    #[test]
    fn a_ring_signals_one_eventfd_after_another_and_does_nothing_else() {
        let rings = rings();
        for _ in 0..3 {
            let eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
            let mut notifier = Notifier::new(&rings, &file(&eventfd)).unwrap();
            assert!(Notifier::new(&rings, &file(&eventfd)).is_err(), "one ring");
            assert!(notifier.signal());
            assert_eq!(eventfd.read().unwrap(), 1);
            let close = opcode::Close::new(io_uring::types::Fd(eventfd.as_raw_fd())).build();
            // SAFETY: it names no memory.
            unsafe { notifier.ring.submission().push(&close) }.unwrap();
            notifier.ring.submit_and_wait(1).unwrap();
            let refused = notifier.ring.completion().next().unwrap();
            assert_eq!(refused.result(), -libc::EACCES);
            let files = notifier.ring.submitter().register_files(&[0]);
            assert_eq!(files.unwrap_err().raw_os_error(), Some(libc::EACCES));
        }
    }
}
