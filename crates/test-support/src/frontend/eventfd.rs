//! Event file descriptors: the kicks, calls and errors of a ring.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// A non-blocking eventfd.
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new one, with nothing pending.
    pub fn new() -> Self {
        Self(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap())
    }

    /// Another descriptor of the same counter.
    pub fn duplicate(&self) -> Self {
        Self(self.0.try_clone().unwrap())
    }

    /// Adds one to the counter.
    pub fn signal(&self) {
        rustix::io::write(&self.0, &1u64.to_ne_bytes()).unwrap();
    }

    /// Has reads and writes of it block from now on, as some frontends' do.
    pub fn set_blocking(&self) {
        let flags = fcntl_getfl(&self.0).unwrap();
        fcntl_setfl(&self.0, flags - OFlags::NONBLOCK).unwrap();
    }

    /// Makes it so full that another signal would have to wait.
    pub fn fill(&self) {
        self.take();
        rustix::io::write(&self.0, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    }

    /// Takes what is pending: how often it was signalled since the last call.
    pub fn take(&self) -> u64 {
        if !self.wait(Duration::ZERO) {
            return 0;
        }
        let mut count = [0u8; 8];
        match rustix::io::read(&self.0, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// Waits until it is signalled, without taking the signal. False when `limit` passes first.
    pub fn wait(&self, limit: Duration) -> bool {
        wait_readable(self.0.as_fd(), limit)
    }
}

impl Default for EventFd {
    fn default() -> Self {
        Self::new()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until `fd` is readable (or hung up). False when `limit` passes first.
pub fn wait_readable(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).unwrap();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&limit)).unwrap_or(0) > 0
}
