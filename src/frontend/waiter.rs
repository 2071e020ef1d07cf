//! Waiting for one of several things, for the main threads of both processes of an attach.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGINT, SIGTERM};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Descriptors that are watched for something to read, each under a number.
pub struct Waiter(Epoll);

impl Waiter {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Self> {
        Epoll::new().map(Self)
    }

    /// Watches a descriptor, which must stay open for as long as it is watched.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn watch(&self, what: &impl AsRawFd, name: u64) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, name);
        self.0.ctl(ControlOperation::Add, what.as_raw_fd(), event)
    }

    /// Watches it no more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn unwatch(&self, what: &impl AsRawFd) -> io::Result<()> {
        self.0.ctl(
            ControlOperation::Delete,
            what.as_raw_fd(),
            EpollEvent::default(),
        )
    }

    /// Waits until one of them has something, and tells its number; of several the lowest.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wait(&self) -> io::Result<u64> {
        let mut events = [EpollEvent::default(); 4];
        loop {
            match self.0.wait(-1, &mut events) {
                Ok(count) => {
                    if let Some(first) = events[..count].iter().map(EpollEvent::data).min() {
                        return Ok(first);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A stream that has something to read when the process is told to end (SIGTERM or SIGINT).
///
/// # Errors
/// What the kernel says.
pub fn signal_pipe() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}
