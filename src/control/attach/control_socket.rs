//! Telling an attached disk something: a socket in the runtime directory that `attach` serves.
//!
//! A client sends one line of JSON and gets one line back: `ok`, or what is wrong. Only the owner of
//! the runtime directory reaches the socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use crate::frontend::Limits;

use super::AttachError;

/// Bytes of a line at most.
const MOST_LINE: u64 = 2048;
/// How long the other end may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The serving end.
pub(super) struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

fn path_of(runtime_dir: &Path, disk: Uuid) -> PathBuf {
    runtime_dir.join(format!("{disk}.control"))
}

impl ControlSocket {
    /// Binds the socket of a disk that this process has claimed: one that is there already was left
    /// behind.
    pub(super) fn bind(runtime_dir: &Path, disk: Uuid) -> Result<Self, AttachError> {
        let path = path_of(runtime_dir, disk);
        let _ = std::fs::remove_file(&path);
        match UnixListener::bind(&path) {
            Ok(listener) => Ok(Self { listener, path }),
            Err(source) => Err(AttachError::Socket { path, source }),
        }
    }

    /// Serves the client that waits: gives its limits to `apply` and tells it the outcome.
    pub(super) fn serve(&self, apply: impl FnOnce(&Limits) -> io::Result<()>) -> io::Result<()> {
        let (mut client, _) = self.listener.accept()?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.set_write_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        BufReader::new(Read::by_ref(&mut client).take(MOST_LINE)).read_line(&mut line)?;
        let outcome = serde_json::from_str(&line)
            .map_err(|e| e.to_string())
            .and_then(|limits| apply(&limits).map_err(|e| e.to_string()));
        match outcome {
            Ok(()) => writeln!(client, "ok"),
            Err(error) => writeln!(client, "{error}"),
        }
    }
}

impl AsRawFd for ControlSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Changes the limits of an attached disk.
///
/// # Errors
/// [`AttachError::NotAttached`], or [`AttachError::Refused`].
pub fn set_limits(runtime_dir: &Path, disk: Uuid, limits: &Limits) -> Result<(), AttachError> {
    let gone = |source| AttachError::NotAttached { source };
    let mut socket = UnixStream::connect(path_of(runtime_dir, disk)).map_err(gone)?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(gone)?;
    let json = serde_json::to_string(limits).map_err(|e| AttachError::Refused(e.to_string()))?;
    writeln!(socket, "{json}").map_err(gone)?;
    let mut answer = String::new();
    BufReader::new(socket.take(MOST_LINE))
        .read_line(&mut answer)
        .map_err(gone)?;
    match answer.trim_end() {
        "ok" => Ok(()),
        other => Err(AttachError::Refused(format!(
            "the limits were not changed: {other}"
        ))),
    }
}
