//! Starting the data plane process, and its end.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::error::AttachError;
use protocol::{COMMAND_FD, Commands, KEEP_FD, KeepSocket, Messages, REGION_FD, SOCKET_FD};
use sandbox::Launcher;

/// How long the data plane may take to take a command, and to end after it closed its socket.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

/// How long one may take to start, on a busy host.
pub(crate) const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long one that is given up may take to end.
const ABANDON_PATIENCE: Duration = Duration::from_secs(2);

/// The running data plane.
pub(crate) struct DataPlane {
    launcher: Arc<Launcher>,
    control: UnixStream,
    /// How it has ended, once that was told.
    ended: Option<ExitStatus>,
}

pub(crate) fn process(what: &'static str) -> impl Fn(io::Error) -> AttachError {
    move |source| AttachError::Process { what, source }
}

impl DataPlane {
    /// Has the launcher start its program again as the data plane, with nothing but its sockets (`socket` is that of
    /// the frontends) and the memory that outlives it. Through the socket that is given back it has things kept.
    pub(crate) fn spawn(
        launcher: Arc<Launcher>,
        socket: OwnedFd,
        region: OwnedFd,
        patience: Duration,
    ) -> Result<(Self, KeepSocket), AttachError> {
        let fail = process("start the data plane");
        let (control, theirs) = UnixStream::pair().map_err(&fail)?;
        // Commands are short: it takes them, or it is not to be waited for.
        control
            .set_write_timeout(Some(LAST_PATIENCE))
            .map_err(&fail)?;
        let (keep, kept) = KeepSocket::pair(LAST_PATIENCE).map_err(&fail)?;
        let fds = [
            (COMMAND_FD, OwnedFd::from(theirs)),
            (SOCKET_FD, socket),
            (KEEP_FD, kept),
            (REGION_FD, region),
        ];
        let from_3 = fds.iter().zip(3..).all(|((number, _), at)| *number == at);
        debug_assert!(from_3, "the launcher gives descriptors numbers from 3 on");
        let fds: Vec<_> = fds.iter().map(|(_, fd)| fd.as_fd()).collect();
        launcher.launch(&fds, patience)?;
        let this = Self {
            launcher,
            control,
            ended: None,
        };
        Ok((this, keep))
    }

    /// One that the program before this one has started in this process.
    pub(crate) fn adopt(launcher: Arc<Launcher>, control: UnixStream) -> Self {
        Self {
            launcher,
            control,
            ended: None,
        }
    }

    /// For commands, from now on.
    pub(crate) fn commands(&self) -> Result<Commands, AttachError> {
        Ok(Commands::new(self.stream()?)?)
    }

    /// What it says.
    pub(crate) fn messages(&self) -> Result<Messages, AttachError> {
        Ok(Messages::new(self.stream()?))
    }

    /// What starts data planes.
    pub(crate) fn launcher(&self) -> Arc<Launcher> {
        self.launcher.clone()
    }

    /// The command channel.
    pub(crate) fn stream(&self) -> Result<UnixStream, AttachError> {
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
        if self.ended.is_some() {
            return;
        }
        if let Err(error) = self.launcher.kill() {
            log::error!("{error}");
        }
    }

    /// Ends it, of which nothing is known: neither it nor its launcher may do what they are told.
    pub(crate) fn abandon(&mut self) {
        self.kill();
        let deadline = Instant::now() + ABANDON_PATIENCE;
        let status = self.launcher.ended(deadline).ok().flatten();
        // Who is waited for no more is as good as one that was killed.
        self.ended = Some(status.unwrap_or_else(|| ExitStatus::from_raw(Signal::KILL.as_raw())));
    }

    /// Waits for its end, which has begun: its socket is closed, which it never does by itself before
    /// that. One that does not come to it is killed.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus, AttachError> {
        let mut killed = false;
        if let Some(status) = self.ended {
            return Ok(status);
        }
        loop {
            if let Some(status) = self.launcher.ended(Instant::now() + LAST_PATIENCE)? {
                self.ended = Some(status);
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
        if self.ended.is_none() {
            self.kill();
            let _ = self.wait();
        }
    }
}
