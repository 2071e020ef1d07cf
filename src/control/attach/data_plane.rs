//! Starting the data plane process, and waiting for its end.

use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};

use command_fds::{CommandFdExt, FdMapping};

use crate::frontend::{CONTROL_FD, DataPlaneFds, LIMITS, Limits, READY, Setup, Waiter, send_setup};
use crate::keys::Dek;
use crate::store::LayerFiles;
use crate::volume::RuntimeMap;

use super::control_socket::ControlSocket;
use super::{AttachError, Socket};

/// How the data plane ended.
pub(super) enum Ended {
    /// It flushed everything.
    Flushed,
    /// It said why it cannot serve the disk.
    Refused(String),
    /// It ended without a word.
    Died(ExitStatus),
}

/// The running data plane.
pub(super) struct DataPlane {
    child: Child,
    control: UnixStream,
}

fn process(what: &'static str) -> impl Fn(io::Error) -> AttachError {
    move |source| AttachError::Process { what, source }
}

impl DataPlane {
    /// Starts this program again as the data plane, with nothing but its descriptors.
    pub(super) fn spawn(
        socket: &Socket,
        files: LayerFiles,
        runtime: RuntimeMap,
    ) -> Result<Self, AttachError> {
        let fail = process("start the data plane");
        let (control, theirs) = UnixStream::pair().map_err(&fail)?;
        let fds = DataPlaneFds::FIXED;
        let map = |parent_fd: OwnedFd, child_fd| FdMapping {
            parent_fd,
            child_fd,
        };
        let mappings = vec![
            map(theirs.into(), CONTROL_FD),
            map(socket.duplicate()?, fds.socket),
            map(files.data.into_file().into(), fds.data),
            map(files.map.into_file().into(), fds.map),
            map(runtime.into_file().into(), fds.runtime),
        ];
        let program = std::env::current_exe().map_err(&fail)?;
        let mut command = Command::new(program);
        command
            .arg("data-plane")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .env_clear();
        if let Some(level) = std::env::var_os("RUST_LOG") {
            command.env("RUST_LOG", level);
        } else {
            command.env("RUST_LOG", log::max_level().as_str());
        }
        let collision = |_| fail(io::ErrorKind::InvalidInput.into());
        command.fd_mappings(mappings).map_err(collision)?;
        let child = command.spawn().map_err(&fail)?;
        Ok(Self { child, control })
    }

    pub(super) fn send(&mut self, setup: &Setup, dek: &Dek) -> Result<(), AttachError> {
        Ok(send_setup(&mut self.control, setup, dek)?)
    }

    /// Waits for the end of the data plane; a signal to this process makes it end. `ready` is
    /// called when it serves guests.
    pub(super) fn supervise(
        mut self,
        signals: &UnixStream,
        commands: &ControlSocket,
        ready: impl FnOnce(),
    ) -> Result<Ended, AttachError> {
        let fail = process("watch the data plane");
        let waiter = Waiter::new().map_err(&fail)?;
        waiter.watch(&self.control, CONTROL).map_err(&fail)?;
        waiter.watch(signals, SIGNAL).map_err(&fail)?;
        waiter.watch(commands, COMMAND).map_err(&fail)?;
        let mut lines = BufReader::new(self.control.try_clone().map_err(&fail)?);
        let (mut ready, mut reason) = (Some(ready), None);
        loop {
            match waiter.wait().map_err(&fail)? {
                SIGNAL => {
                    // The data plane sees the end of the control socket, and ends.
                    self.control.shutdown(Shutdown::Write).map_err(&fail)?;
                    waiter.unwatch(signals).map_err(&fail)?;
                    continue;
                }
                COMMAND => {
                    let apply = |limits: &Limits| {
                        let json = serde_json::to_string(limits)?;
                        (&self.control).write_all(format!("{LIMITS}{json}\n").as_bytes())
                    };
                    if let Err(error) = commands.serve(apply) {
                        log::warn!("a command could not be answered: {error}");
                    }
                    continue;
                }
                _ => {}
            }
            let mut line = String::new();
            match lines.read_line(&mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            if line.trim_end() == READY {
                if let Some(ready) = ready.take() {
                    ready();
                }
            } else if let Some(text) = line.trim_end().strip_prefix("error ") {
                reason = Some(text.to_owned());
            }
        }
        let status = self.child.wait().map_err(&fail)?;
        Ok(match reason {
            Some(reason) => Ended::Refused(reason),
            None if status.success() => Ended::Flushed,
            None => Ended::Died(status),
        })
    }
}

const CONTROL: u64 = 0;
const SIGNAL: u64 = 1;
const COMMAND: u64 = 2;
