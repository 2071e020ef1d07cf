//! Waiting for one of several things, for the main threads of both processes of an attach.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
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

    /// Watches a descriptor for its end alone: a socket, whose other end is closed. What there is to read does not
    /// count.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn watch_end(&self, what: &impl AsRawFd, name: u64) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::empty(), name);
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
        loop {
            if let Some(first) = self.wait_for(-1)? {
                return Ok(first);
            }
        }
    }

    /// As [`Waiter::wait`], at most until `deadline`; `None` when that has come.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wait_until(&self, deadline: Instant) -> io::Result<Option<u64>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that the deadline has come when the time is over.
            let milliseconds = left.as_micros().div_ceil(1000);
            let timeout = i32::try_from(milliseconds).unwrap_or(i32::MAX);
            match self.wait_for(timeout)? {
                None if !left.is_zero() => {}
                result => return Ok(result),
            }
        }
    }

    fn wait_for(&self, timeout: i32) -> io::Result<Option<u64>> {
        let mut events = [EpollEvent::default(); 4];
        match self.0.wait(timeout, &mut events) {
            Ok(count) => Ok(events[..count].iter().map(EpollEvent::data).min()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A stream that has something to read when the process is told to end (SIGTERM or SIGINT).
///
/// # Errors
/// What the kernel says.
pub fn signal_pipe() -> io::Result<UnixStream> {
    told_of(&[SIGTERM, SIGINT])
}

/// A stream that has something to read when the process is told to take another program up (SIGHUP).
///
/// # Errors
/// What the kernel says.
pub fn hangup_pipe() -> io::Result<UnixStream> {
    told_of(&[SIGHUP])
}

fn told_of(signals: &[i32]) -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    for signal in signals.iter().copied() {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;

    use super::*;

    #[test]
    fn only_the_end_of_a_socket_is_told_where_that_is_watched() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let waiter = Waiter::new().unwrap();
        waiter.watch_end(&ours, 3).unwrap();
        theirs.write_all(b"something").unwrap();
        assert_eq!(waiter.wait_until(Instant::now()).unwrap(), None);
        theirs.shutdown(Shutdown::Write).unwrap();
        assert_eq!(waiter.wait_until(Instant::now()).unwrap(), None);
        drop(theirs);
        assert_eq!(waiter.wait().unwrap(), 3);
    }
}
