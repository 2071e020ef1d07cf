//! The launcher as its owner sees it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::error::io_error;
use crate::{Sandbox, SandboxError, User};

use super::message::{
    LAUNCHER_FD, Notice, notice_in, order_kill, order_look, order_start, packet, receive,
};
use super::program::program;

/// How long a launcher may take for a start, on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a launcher starts, and how confined that is.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// Whether it goes on without a part of its confinement.
    pub sandbox: Sandbox,
    /// Who it runs as; when nothing is said a user of its own, if this process is root's.
    pub user: Option<User>,
}

impl Launch {
    /// As arguments of a program.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec!["--sandbox".into(), self.sandbox.to_string().into()];
        if let Some(user) = self.user {
            arguments.extend(["--user".into(), user.to_string().into()]);
        }
        arguments
    }
}

/// A process that starts one confined process after another, one at a time.
#[derive(Debug)]
pub struct Launcher {
    socket: UnixDatagram,
    process: Child,
    /// How the process has ended, when that was heard before anybody asked.
    ended: Mutex<Option<ExitStatus>>,
}

impl Launcher {
    /// Starts it, by this program's subcommand of that name. Whoever starts it confines itself afterwards.
    ///
    /// # Errors
    /// [`SandboxError::Io`].
    pub fn start(subcommand: &str, launch: &Launch) -> Result<Self, SandboxError> {
        let fail = io_error("start the launcher of the data plane");
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| fail(e.into()))?;
        let mut command = Command::new(program().map_err(&fail)?);
        command
            .arg(subcommand)
            .args(launch.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .env_clear();
        let level = std::env::var_os("RUST_LOG");
        command.env(
            "RUST_LOG",
            level.unwrap_or_else(|| log::max_level().as_str().into()),
        );
        let socket = FdMapping {
            parent_fd: theirs,
            child_fd: LAUNCHER_FD,
        };
        let collision = |_| fail(io::ErrorKind::InvalidInput.into());
        command.fd_mappings(vec![socket]).map_err(collision)?;
        let process = command.spawn().map_err(&fail)?;
        Ok(Self {
            socket: ours.into(),
            process,
            ended: Mutex::default(),
        })
    }

    /// Has it start a process with these descriptors, from number 3 on; the process's id.
    ///
    /// # Errors
    /// [`SandboxError::Io`].
    pub fn launch(&self, fds: &[BorrowedFd<'_>]) -> Result<u32, SandboxError> {
        let fail = io_error("start the data plane");
        order_start(&self.socket, fds).map_err(&fail)?;
        match self.heard(Instant::now() + PATIENCE).map_err(&fail)? {
            Some((Notice::Started(id), _)) => Ok(id),
            Some((Notice::NotStarted(why), _)) => Err(fail(io::Error::other(why))),
            Some(_) | None => Err(fail(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Has it kill the process.
    ///
    /// # Errors
    /// [`SandboxError::Io`]: the launcher itself has ended.
    pub fn kill(&self) -> Result<(), SandboxError> {
        order_kill(&self.socket).map_err(io_error("kill the data plane"))
    }

    /// Has it open the mappings of the process at the other end of a connection (`/proc/PID/maps`).
    ///
    /// # Errors
    /// [`SandboxError::Io`]: they cannot be seen, or the launcher itself has ended.
    pub fn mappings_at(&self, connection: BorrowedFd<'_>) -> Result<File, SandboxError> {
        let fail = io_error("look at the mappings of a process");
        order_look(&self.socket, connection).map_err(&fail)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let heard = self.heard(deadline).map_err(&fail)?;
            match heard {
                Some((Notice::Mappings, Some(maps))) => return Ok(maps.into()),
                Some((Notice::Mappings, None)) => {
                    return Err(fail(io::ErrorKind::PermissionDenied.into()));
                }
                Some((Notice::Ended(status), _)) => {
                    *self.noted() = Some(ExitStatus::from_raw(status));
                }
                Some(_) => {}
                None => return Err(fail(io::ErrorKind::TimedOut.into())),
            }
        }
    }

    /// Waits for the end of the process, until `deadline` at most.
    ///
    /// # Errors
    /// [`SandboxError::Io`]: the launcher itself has ended.
    pub fn ended(&self, deadline: Instant) -> Result<Option<ExitStatus>, SandboxError> {
        let fail = io_error("wait for the data plane");
        loop {
            if let Some(status) = self.noted().take() {
                return Ok(Some(status));
            }
            match self.heard(deadline).map_err(&fail)? {
                Some((Notice::Ended(status), _)) => {
                    return Ok(Some(ExitStatus::from_raw(status)));
                }
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    fn noted(&self) -> MutexGuard<'_, Option<ExitStatus>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it tells next, if it does until then, and what comes with that.
    fn heard(&self, deadline: Instant) -> io::Result<Option<(Notice, Option<OwnedFd>)>> {
        let mut packet = packet();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Zero would mean to wait for ever.
            let left = left.max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left))?;
            match receive(&self.socket, &mut packet) {
                Ok((len, mut fds)) => {
                    return Ok(Some((notice_in(&packet[..len])?, fds.pop())));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Launcher {
    /// It ends once this end of the socket is closed and its process has ended; nobody waits for that.
    fn drop(&mut self) {
        let _ = self.process.try_wait();
    }
}
