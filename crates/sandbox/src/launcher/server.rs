//! The launcher itself: one thread, which waits for an order or for the end of what it has started.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, geteuid, pidfd_open, pidfd_send_signal, waitpid,
};
use rustix::thread::{CapabilitySet, set_name, set_no_new_privs};

use crate::capabilities::drop_to;
use crate::error::io_error;
use crate::user::OwnUser;
use crate::{Launch, Sandbox, SandboxError};

use super::message::{LAUNCHER_FD, Notice, Order, next_order, tell, tell_mappings, tell_started};
use super::program::program;
use super::trust::objection;

/// What a confined process needs until it is confined, and this one to kill it and to look at a VMM's mappings.
const KEPT: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SYS_PTRACE);

/// How long a process may go on whose owner has ended: as long as one whose key is revoked may. It has nobody who would
/// tell it of a revocation then, nobody waits for what it flushes, and whoever took it over would have its key for ever.
const LAST_PATIENCE: Duration = Duration::from_secs(30);

/// Runs the launcher in this process, which [`Launcher::start`](super::Launcher::start) has started: until the other
/// end of its socket is closed and what it started last has ended, which is killed after a while. What it starts is
/// this program with the subcommand `subcommand`. Its owner may change files in the directories `changed`, from which no program takes its
/// place.
///
/// # Errors
/// [`SandboxError::Io`]; its owner notices the end.
pub fn run_launcher(
    subcommand: &str,
    launch: Launch,
    changed: Vec<PathBuf>,
) -> Result<(), SandboxError> {
    // One that was started by its descriptor is called by a number.
    let _ = set_name(c"sealdisk");
    let socket = inherited().map_err(io_error("use the socket of the attach process"))?;
    outlive_signals();
    let (own, refused) = match own_user(&launch) {
        Ok(own) => (own, None),
        Err(why) => (None, Some(why.to_string())),
    };
    let user = launch.user.or(own.as_ref().map(|own| own.user));
    let launch = Launch { user, ..launch };
    set_no_new_privs(true).map_err(io_error("give up new privileges"))?;
    if geteuid().is_root()
        && let Err(error) = drop_to(KEPT)
    {
        log::info!("the launcher keeps its capabilities: {error}");
    }
    let mut server = Server {
        subcommand,
        launch,
        refused,
        socket,
        running: None,
        changed,
        successor: None,
    };
    let served = server.run();
    // The user stays taken until the process has ended that has it.
    if let Some(running) = server.running.take() {
        running.end_within(LAST_PATIENCE);
        let _ = running.end();
    }
    drop(own);
    served.map_err(io_error("serve the attach process"))
}

/// The user of a process of root's for which none was named.
fn own_user(launch: &Launch) -> Result<Option<OwnUser>, SandboxError> {
    if launch.user.is_some() || !geteuid().is_root() {
        return Ok(None);
    }
    match OwnUser::choose() {
        Ok(own) => Ok(Some(own)),
        Err(error) if launch.sandbox == Sandbox::BestEffort => {
            log::warn!("{error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn inherited() -> io::Result<OwnedFd> {
    // SAFETY: only a look at whether the number is an open descriptor.
    let look = unsafe { BorrowedFd::borrow_raw(LAUNCHER_FD) };
    fcntl_setfd(look, FdFlags::CLOEXEC)?;
    // SAFETY: it is open (just seen), its maker left it open for this, and it is taken over once, at the start.
    Ok(unsafe { OwnedFd::from_raw_fd(LAUNCHER_FD) })
}

/// What ends its owner and the process that it has started is no reason to end: the one tells by its socket, the other
/// by its end. A handler is not inherited by a program that is started.
fn outlive_signals() {
    extern "C" fn nothing(_: libc::c_int) {}
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: the handler does nothing.
        unsafe {
            libc::signal(
                signal,
                nothing as extern "C" fn(libc::c_int) as libc::sighandler_t,
            )
        };
    }
}

struct Server<'a> {
    subcommand: &'a str,
    launch: Launch,
    /// Why nothing is started.
    refused: Option<String>,
    socket: OwnedFd,
    running: Option<Running>,
    /// Where its owner may change files.
    changed: Vec<PathBuf>,
    /// The launcher of another program that it has started last.
    successor: Option<Child>,
}

/// A process that was started.
struct Running {
    process: Pid,
    pidfd: OwnedFd,
}

impl Running {
    fn kill(&self) {
        // It fails only when it has ended.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits for its end, and kills it when that takes longer.
    fn end_within(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut watched = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match Timespec::try_from(left).map(|left| poll(&mut watched, Some(&left))) {
                Ok(Err(Errno::INTR)) => {}
                Ok(Ok(0)) if !left.is_zero() => {}
                Ok(Ok(1..)) => return,
                // A host without memory is no reason to end it early.
                Ok(Err(_)) if !left.is_zero() => thread::sleep(Duration::from_millis(100)),
                _ => break,
            }
        }
        log::error!(
            "the attach process has ended, and its data plane does not end, so it is killed: every completed write is \
             kept by the runtime map"
        );
        self.kill();
    }

    /// Waits for its end; the status of wait(2).
    fn end(self) -> io::Result<i32> {
        loop {
            match waitpid(Some(self.process), WaitOptions::empty()) {
                Ok(Some((_, status))) => return Ok(status.as_raw()),
                Ok(None) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Server<'_> {
    /// Obeys until there will be no more orders.
    fn run(&mut self) -> io::Result<()> {
        loop {
            let (ordered, ended) = self.wait()?;
            if ended && let Some(running) = self.running.take() {
                let status = running.end()?;
                if tell(&self.socket, &Notice::Ended(status)).is_err() {
                    // There is nobody any more.
                    return Ok(());
                }
            }
            if !ordered {
                continue;
            }
            match next_order(&self.socket)? {
                Some(Order::Start(fds)) => {
                    let notice = self.start(fds);
                    match (&notice, &self.running) {
                        (Notice::Started(id), Some(running)) => {
                            tell_started(&self.socket, *id, running.pidfd.as_fd())?;
                        }
                        _ => tell(&self.socket, &notice)?,
                    }
                }
                Some(Order::Kill) => {
                    if let Some(running) = &self.running {
                        running.kill();
                    }
                }
                Some(Order::Look(connection)) => {
                    let maps = mappings_at(&connection);
                    tell_mappings(&self.socket, maps)?;
                }
                Some(Order::Succeed { program, socket }) => {
                    let notice = self.succeed(&program, socket);
                    tell(&self.socket, &notice)?;
                }
                Some(Order::Abandon(id)) => {
                    // Another one may have taken its place, and ended it.
                    if self.successor.as_ref().is_some_and(|it| it.id() == id) {
                        self.abandon();
                    }
                }
                None => return Ok(()),
            }
        }
    }

    /// Starts a launcher of another program, in the same way as this one was started.
    fn succeed(&mut self, program: &File, socket: OwnedFd) -> Notice {
        self.abandon();
        match objection(program, &self.changed) {
            Ok(None) => {}
            Ok(Some(why)) => return Notice::NotStarted(why),
            Err(error) => return Notice::NotStarted(error.to_string()),
        }
        // This very file, whatever is at its path by now.
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        command
            .arg0("sealdisk")
            .args(std::env::args_os().skip(1))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let socket = FdMapping {
            parent_fd: socket,
            child_fd: LAUNCHER_FD,
        };
        let spawned = match command.fd_mappings(vec![socket]) {
            Ok(command) => command.spawn(),
            Err(_) => Err(io::ErrorKind::InvalidInput.into()),
        };
        match spawned {
            Ok(child) => {
                let id = child.id();
                self.successor = Some(child);
                Notice::Started(id)
            }
            Err(error) => Notice::NotStarted(error.to_string()),
        }
    }

    /// Ends the launcher that it has started last, if there is one.
    fn abandon(&mut self) {
        if let Some(mut successor) = self.successor.take() {
            // It fails when it has ended.
            let _ = successor.kill();
            let _ = successor.wait();
        }
    }

    /// Waits for an order, and for the end of the process.
    fn wait(&self) -> io::Result<(bool, bool)> {
        let mut watched = vec![PollFd::new(&self.socket, PollFlags::IN)];
        if let Some(running) = &self.running {
            watched.push(PollFd::new(&running.pidfd, PollFlags::IN));
        }
        match poll(&mut watched, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |at: usize| watched.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok((is_ready(0), is_ready(1)))
    }

    fn start(&mut self, fds: Vec<OwnedFd>) -> Notice {
        if let Some(why) = &self.refused {
            return Notice::NotStarted(why.clone());
        }
        if self.running.is_some() {
            return Notice::NotStarted("there is one already".into());
        }
        match started(self.subcommand, &self.launch, fds) {
            Ok(running) => {
                let id = running.process.as_raw_pid().unsigned_abs();
                self.running = Some(running);
                Notice::Started(id)
            }
            Err(error) => Notice::NotStarted(error.to_string()),
        }
    }
}

/// Starts the program, which goes on in a child of this process with namespaces of its own, and tells its id on
/// standard output.
fn started(subcommand: &str, launch: &Launch, fds: Vec<OwnedFd>) -> io::Result<Running> {
    let mut command = Command::new(program()?);
    command
        .arg(subcommand)
        .args(launch.arguments())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mappings = fds
        .into_iter()
        .zip(3..)
        .map(|(parent_fd, child_fd)| FdMapping {
            parent_fd,
            child_fd,
        });
    command
        .fd_mappings(mappings.collect())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut first = command.spawn()?;
    let mut told = [0; 4];
    let said = match first.stdout.take() {
        Some(mut stdout) => stdout.read_exact(&mut told),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    };
    let id = i32::from_le_bytes(told);
    if said.is_ok() && id.unsigned_abs() == first.id() {
        // It could not be isolated, and goes on itself.
        return running(id);
    }
    let status = first.wait()?;
    said.map_err(|_| io::Error::other(format!("it has ended at once ({status})")))?;
    running(id)
}

/// What the process at the other end of a connection has mapped. Landlock forbids the attach process to look.
fn mappings_at(connection: &OwnedFd) -> io::Result<File> {
    let peer = socket_peercred(connection)?.pid;
    File::open(format!("/proc/{}/maps", peer.as_raw_pid()))
}

fn running(id: i32) -> io::Result<Running> {
    let process = Pid::from_raw(id).ok_or(io::ErrorKind::InvalidData)?;
    let pidfd = pidfd_open(process, PidfdFlags::empty())?;
    Ok(Running { process, pidfd })
}
