//! Starting the data plane process, and its end.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::begin::socket::Socket;
use crate::error::AttachError;
use protocol::{COMMAND_FD, Commands, Messages, SOCKET_FD};
use sandbox::Launcher;

/// How long the data plane may take to take a command, and to end after it closed its socket.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

/// The running data plane.
pub(crate) struct DataPlane {
    launcher: Arc<Launcher>,
    control: UnixStream,
    /// Its end has been told.
    ended: bool,
}

pub(crate) fn process(what: &'static str) -> impl Fn(io::Error) -> AttachError {
    move |source| AttachError::Process { what, source }
}

impl DataPlane {
    /// Has the launcher start this program again as the data plane, with nothing but its two sockets.
    pub(crate) fn spawn(launcher: Arc<Launcher>, socket: &Socket) -> Result<Self, AttachError> {
        let fail = process("start the data plane");
        let (control, theirs) = UnixStream::pair().map_err(&fail)?;
        // Commands are short: it takes them, or it is not to be waited for.
        control
            .set_write_timeout(Some(LAST_PATIENCE))
            .map_err(&fail)?;
        let fds = [
            (COMMAND_FD, OwnedFd::from(theirs)),
            (SOCKET_FD, socket.duplicate()?),
        ];
        let from_3 = fds.iter().zip(3..).all(|((number, _), at)| *number == at);
        debug_assert!(from_3, "the launcher gives descriptors numbers from 3 on");
        let fds: Vec<_> = fds.iter().map(|(_, fd)| fd.as_fd()).collect();
        launcher.launch(&fds)?;
        Ok(Self {
            launcher,
            control,
            ended: false,
        })
    }

    /// For commands, from now on.
    pub(crate) fn commands(&self) -> Result<Commands, AttachError> {
        Ok(Commands::new(self.duplicate()?)?)
    }

    /// What it says.
    pub(crate) fn messages(&self) -> Result<Messages, AttachError> {
        Ok(Messages::new(self.duplicate()?))
    }

    fn duplicate(&self) -> Result<UnixStream, AttachError> {
        let fail = process("duplicate the data plane's socket");
        self.control.try_clone().map_err(fail)
    }

    /// The mappings of the process at the other end of a connection, as /proc/PID/maps has them.
    pub(crate) fn mappings_at(&self, connection: BorrowedFd<'_>) -> Result<String, AttachError> {
        let mut maps = String::new();
        self.launcher
            .mappings_at(connection)?
            .read_to_string(&mut maps)
            .map_err(process("read the mappings of a process"))?;
        Ok(maps)
    }

    /// Ends it at once. What it had completed is kept by the runtime map.
    pub(crate) fn kill(&mut self) {
        if let Err(error) = self.launcher.kill() {
            log::error!("{error}");
        }
    }

    /// Waits for its end, which has begun: its socket is closed, which it never does by itself before
    /// that. One that does not come to it is killed.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus, AttachError> {
        let mut killed = false;
        loop {
            if let Some(status) = self.launcher.ended(Instant::now() + LAST_PATIENCE)? {
                self.ended = true;
                return Ok(status);
            }
            if !killed {
                log::error!("the data plane says nothing more and does not end, so it is killed");
            }
            self.kill();
            killed = true;
        }
    }
}

/// Whoever has it no more has nobody to tell what becomes of it.
impl Drop for DataPlane {
    fn drop(&mut self) {
        if !self.ended {
            self.kill();
            let _ = self.wait();
        }
    }
}
