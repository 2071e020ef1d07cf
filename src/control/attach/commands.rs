//! What the control process tells the data plane, from whichever of its threads.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::frontend::{LIMITS, Limits, OnRevoke, RESIZE, RESTORE, REVOKE};

use super::guard::LayerKeys;

/// How long the data plane may take to serve a new size: it completes what the guest has asked for.
const RESIZE_PATIENCE: Duration = Duration::from_secs(30);

/// The writing end of the data plane's control socket. Commands do not mix: each is written whole.
pub(super) struct Commands {
    control: Mutex<UnixStream>,
    /// Who waits for the answer to a resize.
    resizing: Mutex<Option<SyncSender<Result<u64, String>>>>,
}

impl Commands {
    pub(super) fn new(control: UnixStream) -> Self {
        Self {
            control: Mutex::new(control),
            resizing: Mutex::new(None),
        }
    }

    /// Has the disk, whose files have grown, served with `size` bytes. One at a time.
    pub(super) fn resize(&self, size: u64) -> Result<(), String> {
        let (answer, answered) = sync_channel(1);
        *self.resizing() = Some(answer);
        self.line(&format!("{RESIZE}{size}"))
            .map_err(|e| format!("the data plane cannot be told: {e}"))?;
        match answered.recv_timeout(RESIZE_PATIENCE) {
            Ok(Ok(served)) if served == size => Ok(()),
            Ok(Ok(served)) => Err(format!("the data plane serves {served} bytes")),
            Ok(Err(reason)) => Err(reason),
            Err(_) => Err("the data plane does not answer".into()),
        }
    }

    /// Takes the data plane's answer to a resize: what it serves now, or why it does not.
    pub(super) fn resized(&self, result: Result<u64, String>) {
        if let Some(waiting) = self.resizing().take() {
            // Who waited has given up at most.
            let _ = waiting.try_send(result);
        }
    }

    fn resizing(&self) -> MutexGuard<'_, Option<SyncSender<Result<u64, String>>>> {
        // It is replaced as a whole.
        self.resizing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn limits(&self, limits: &Limits) -> io::Result<()> {
        let json = serde_json::to_string(limits)?;
        self.line(&format!("{LIMITS}{json}"))
    }

    pub(super) fn revoke(&self, mode: OnRevoke) -> io::Result<()> {
        self.line(&format!("{REVOKE}{}", mode.as_str()))
    }

    pub(super) fn restore(&self, keys: &LayerKeys) -> io::Result<()> {
        let layers = serde_json::to_string(&keys.layers)?;
        let mut control = self.control();
        control.write_all(format!("{RESTORE}{layers}\n").as_bytes())?;
        keys.deks.send(&mut *control).map_err(io::Error::other)
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
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
