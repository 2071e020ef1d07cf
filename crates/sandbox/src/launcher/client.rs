//! The launcher as its owner sees it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, waitpid};

use crate::error::io_error;
use crate::{LOG_FORMAT, Sandbox, SandboxError, User, log_format};

use super::message::{
    LAUNCHER_FD, Notice, notice_in, order_abandon, order_kill, order_look, order_start,
    order_succeed, packet, receive,
};
use super::orphan::Orphan;
use super::program::program;

/// How long a launcher may take for what it is told, on a busy host.
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
    process: Pid,
    /// Held from an order to its answer.
    turn: Mutex<()>,
    /// How the process has ended, when that was heard before anybody asked.
    ended: Mutex<Option<ExitStatus>>,
    /// The launcher has ended.
    dead: AtomicBool,
    /// The process that it has started last, which is this process's child once the launcher has ended.
    running: Mutex<Option<Orphan>>,
}

impl Launcher {
    /// Starts it, by this program's subcommand of that name. Whoever starts it confines itself afterwards, and may
    /// change files in the directories `changed`: no program from there ever takes the launcher's place.
    ///
    /// # Errors
    /// [`SandboxError::Io`].
    pub fn start(
        subcommand: &str,
        launch: &Launch,
        changed: &[PathBuf],
    ) -> Result<Self, SandboxError> {
        let fail = io_error("start the launcher of the data plane");
        // A launcher that follows another is that one's child, and is to be this process's after it.
        set_child_subreaper(Some(getpid())).map_err(|e| fail(e.into()))?;
        let (ours, theirs) = sockets().map_err(&fail)?;
        let mut command = Command::new(program().map_err(&fail)?);
        command
            .arg(subcommand)
            .args(launch.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .env_clear();
        for directory in changed {
            command.arg("--changed").arg(directory);
        }
        let level = std::env::var_os("RUST_LOG");
        command.env(
            "RUST_LOG",
            level.unwrap_or_else(|| log::max_level().as_str().into()),
        );
        command.envs(log_format().map(|format| (LOG_FORMAT, format)));
        let socket = FdMapping {
            parent_fd: theirs,
            child_fd: LAUNCHER_FD,
        };
        let collision = |_| fail(io::ErrorKind::InvalidInput.into());
        command.fd_mappings(vec![socket]).map_err(collision)?;
        let process = command.spawn().map_err(&fail)?;
        let process = Pid::from_child(&process);
        Ok(Self::of(ours, process, None))
    }

    /// One that the program before this one has started in this process: its socket, its process, and what that has
    /// started, as [`Launcher::as_fd`], [`Launcher::process`] and [`Launcher::running`] had them.
    ///
    /// # Errors
    /// [`SandboxError::Io`]: that is no process.
    pub fn adopt(
        socket: OwnedFd,
        process: i32,
        running: Option<OwnedFd>,
    ) -> Result<Self, SandboxError> {
        let fail = io_error::<io::Error>("go on with the launcher of the data plane");
        let process = Pid::from_raw(process);
        let process = process.ok_or_else(|| fail(io::ErrorKind::InvalidData.into()))?;
        Ok(Self::of(socket, process, running))
    }

    /// What names the process that it has started last (a pidfd), if it has told that: for a program that goes on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn running(&self) -> io::Result<Option<OwnedFd>> {
        self.orphan().as_ref().map(Orphan::duplicate).transpose()
    }

    /// The id of its process.
    pub fn process(&self) -> i32 {
        self.process.as_raw_pid()
    }

    fn of(socket: OwnedFd, process: Pid, running: Option<OwnedFd>) -> Self {
        Self {
            socket: socket.into(),
            process,
            turn: Mutex::default(),
            ended: Mutex::default(),
            dead: AtomicBool::new(false),
            running: Mutex::new(running.map(Orphan::new)),
        }
    }

    /// Has it start a launcher of another program, as it was started itself, which starts data planes of that program.
    /// Both go on until they are dropped.
    ///
    /// # Errors
    /// [`SandboxError::Io`]: the program cannot be started, or must not be, and why.
    pub fn succeed(&self, program: &File) -> Result<Self, SandboxError> {
        let fail = io_error("start the launcher of the new program");
        let (ours, theirs) = sockets().map_err(&fail)?;
        let order = || order_succeed(&self.socket, program.as_fd(), theirs.as_fd());
        match self.answer(PATIENCE, order).map_err(&fail)?.0 {
            Notice::Started(id) => {
                let process = i32::try_from(id).ok().and_then(Pid::from_raw);
                let process = process.ok_or_else(|| fail(io::ErrorKind::InvalidData.into()))?;
                Ok(Self::of(ours, process, None))
            }
            Notice::NotStarted(why) => Err(fail(io::Error::other(why))),
            _ => Err(fail(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Has it end a launcher that it has started, whatever that does; one that it has not it leaves alone.
    pub fn abandon(&self, other: &Self) {
        let id = other.process.as_raw_pid().unsigned_abs();
        if let Err(error) = order_abandon(&self.socket, id) {
            log::debug!("the launcher of another program is left alone: {error}");
        }
    }

    /// Has it start a process with these descriptors, from number 3 on, within so long; the process's id.
    ///
    /// # Errors
    /// [`SandboxError::Io`].
    pub fn launch(&self, fds: &[BorrowedFd<'_>], patience: Duration) -> Result<u32, SandboxError> {
        let fail = io_error("start the data plane");
        let order = || order_start(&self.socket, fds);
        let (told, named) = self.answer(patience.min(PATIENCE), order).map_err(&fail)?;
        match told {
            Notice::Started(id) => {
                *self.orphan() = named.map(Orphan::new);
                Ok(id)
            }
            Notice::NotStarted(why) => Err(fail(io::Error::other(why))),
            _ => Err(fail(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Has it kill the process. When the launcher itself has ended, this process does.
    ///
    /// # Errors
    /// [`SandboxError::Io`]: neither of them can.
    pub fn kill(&self) -> Result<(), SandboxError> {
        let fail = io_error("kill the data plane");
        let Err(error) = order_kill(&self.socket) else {
            return Ok(());
        };
        let error = self.judged(error);
        match self.orphan().as_ref() {
            Some(orphan) if !self.is_alive() => orphan.kill().map_err(fail),
            _ => Err(fail(error)),
        }
    }

    /// Has it open the mappings of the process at the other end of a connection (`/proc/PID/maps`).
    ///
    /// # Errors
    /// [`SandboxError::Io`]: they cannot be seen, or the launcher itself has ended.
    pub fn mappings_at(&self, connection: BorrowedFd<'_>) -> Result<File, SandboxError> {
        let fail = io_error("look at the mappings of a process");
        let order = || order_look(&self.socket, connection);
        match self.answer(PATIENCE, order).map_err(&fail)? {
            (Notice::Mappings, Some(maps)) => Ok(maps.into()),
            (Notice::Mappings, None) => Err(fail(io::ErrorKind::PermissionDenied.into())),
            _ => Err(fail(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Waits for the end of the process, until `deadline` at most. When the launcher itself has ended, it is this
    /// process's child.
    ///
    /// # Errors
    /// [`SandboxError::Io`]: the launcher itself has ended, and nothing is known of the process.
    pub fn ended(&self, deadline: Instant) -> Result<Option<ExitStatus>, SandboxError> {
        let fail = io_error("wait for the data plane");
        let _turn = self.turn();
        loop {
            if let Some(status) = self.noted().take() {
                return Ok(Some(status));
            }
            match self.heard(deadline).map_err(|error| self.judged(error)) {
                Ok(Some((Notice::Ended(status), _))) => {
                    *self.orphan() = None;
                    return Ok(Some(ExitStatus::from_raw(status)));
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                Err(error) => {
                    return match self.orphan().as_ref() {
                        Some(orphan) if !self.is_alive() => orphan.ended(deadline).map_err(fail),
                        _ => Err(fail(error)),
                    };
                }
            }
        }
    }

    /// Gives an order, and waits for its answer and what comes with that.
    fn answer(
        &self,
        patience: Duration,
        order: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<(Notice, Option<OwnedFd>)> {
        let _turn = self.turn();
        order().map_err(|error| self.judged(error))?;
        let deadline = Instant::now() + patience;
        loop {
            match self.heard(deadline).map_err(|error| self.judged(error))? {
                Some((Notice::Ended(status), _)) => {
                    *self.noted() = Some(ExitStatus::from_raw(status));
                }
                Some(answer) => return Ok(answer),
                None => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Has it end, once its process has, and waits for that.
    pub fn end(&self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
        // One that another launcher has given up is not this process's child.
        let _ = waitpid(Some(self.process), WaitOptions::empty());
    }

    /// Whether it was still there when it was told something last.
    pub fn is_alive(&self) -> bool {
        !self.dead.load(Ordering::Relaxed)
    }

    /// Whether it is no more: its end of the socket is closed.
    pub fn has_ended(&self) -> bool {
        let mut watched = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if poll(&mut watched, Some(&now)).is_ok_and(|ready| ready > 0) {
            self.dead.store(true, Ordering::Relaxed);
        }
        !self.is_alive()
    }

    /// Says plainly that the launcher has ended, if that is what an error means.
    fn judged(&self, error: io::Error) -> io::Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => {
                self.dead.store(true, Ordering::Relaxed);
                io::Error::other(
                    "its launcher has ended, and no other data plane can be started: attach the disk again when \
                     its guest allows it",
                )
            }
            _ => error,
        }
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        // Nothing is guarded but the turn.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn orphan(&self) -> MutexGuard<'_, Option<Orphan>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Its socket.
impl AsFd for Launcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Both ends of a launcher's socket.
fn sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    Ok(socketpair(AddressFamily::UNIX, kind, flags, None)?)
}

impl Drop for Launcher {
    /// It ends once this end of the socket is closed and its process has ended; nobody waits for that.
    fn drop(&mut self) {
        // It fails when the other end is closed already.
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}
