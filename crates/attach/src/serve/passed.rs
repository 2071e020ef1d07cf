//! Descriptors that another program finds open which this process executes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use serde::{Deserialize, Serialize};

/// The number under which the next program finds a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Passed(RawFd);

/// Descriptors for the next program. They are closed again if it is not executed.
#[derive(Default)]
pub(crate) struct Parcel(Vec<OwnedFd>);

impl Parcel {
    /// Adds one.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn put(&mut self, descriptor: impl AsFd) -> io::Result<Passed> {
        // Not among those that a program is started with.
        let copy = fcntl_dupfd_cloexec(descriptor, 3)?;
        let number = copy.as_raw_fd();
        self.0.push(copy);
        Ok(Passed(number))
    }

    /// Has all of them stay open when a program is executed, or none.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn stay_open(&self, stay: bool) -> io::Result<()> {
        let flags = match stay {
            true => FdFlags::empty(),
            false => FdFlags::CLOEXEC,
        };
        self.0
            .iter()
            .try_for_each(|descriptor| Ok(fcntl_setfd(descriptor, flags)?))
    }
}

impl Passed {
    /// The number, as it was given on a command line.
    pub(crate) fn numbered(number: RawFd) -> Self {
        Self(number)
    }

    /// The number.
    pub(crate) fn number(self) -> RawFd {
        self.0
    }

    /// Takes the descriptor over, once, at the start of the program.
    ///
    /// # Errors
    /// What the kernel says, of a number that is not open.
    pub(crate) fn take(self) -> io::Result<OwnedFd> {
        if self.0 < 3 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: only a look at whether the number is an open descriptor.
        let look = unsafe { BorrowedFd::borrow_raw(self.0) };
        fcntl_setfd(look, FdFlags::CLOEXEC)?;
        // SAFETY: it is open (just seen). The program before this one has left it open for this, each under a number of
        // its own, and each is taken over once, before anything else was opened that could get the number.
        Ok(unsafe { OwnedFd::from_raw_fd(self.0) })
    }
}
