//! What the control process tells the data plane, from whichever of its threads.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::frontend::{LIMITS, Limits, OnRevoke, RESTORE, REVOKE};
use crate::keys::Dek;

/// The writing end of the data plane's control socket. Commands do not mix: each is written whole.
pub(super) struct Commands(Mutex<UnixStream>);

impl Commands {
    pub(super) fn new(control: UnixStream) -> Self {
        Self(Mutex::new(control))
    }

    pub(super) fn limits(&self, limits: &Limits) -> io::Result<()> {
        let json = serde_json::to_string(limits)?;
        self.line(&format!("{LIMITS}{json}"))
    }

    pub(super) fn revoke(&self, mode: OnRevoke) -> io::Result<()> {
        self.line(&format!("{REVOKE}{}", mode.as_str()))
    }

    pub(super) fn restore(&self, dek: &Dek) -> io::Result<()> {
        let mut control = self.control();
        writeln!(control, "{RESTORE}")?;
        dek.send(&mut *control).map_err(io::Error::other)
    }

    /// The data plane sees the end of the socket, and ends.
    pub(super) fn end(&self) -> io::Result<()> {
        self.control().shutdown(Shutdown::Write)
    }

    fn line(&self, line: &str) -> io::Result<()> {
        self.control().write_all(format!("{line}\n").as_bytes())
    }

    fn control(&self) -> MutexGuard<'_, UnixStream> {
        // A command that was cut off ends the data plane, whoever holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
