//! A program and all that it starts, which end together.
//!
//! Between this process and the program stands another one, a copy of this one. What the program starts becomes the
//! child of that one when its own parent ends, also where it has left the program's group and session, as daemons do.
//! So nothing of it gets away: when the program has ended, or this process does not want it any more or is no more, all
//! of it is killed and heard of, and then that process ends.

use std::ffi::CStr;
use std::io::{self, PipeWriter, pipe};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, WaitStatus, getpid, getppid, kill_process,
    kill_process_group, set_child_subreaper, set_parent_process_death_signal, setpgid, wait,
    waitid,
};
use rustix::thread::set_name;

/// What the process is called that stands between (`ps -o comm`).
const NAME: &CStr = c"event-command";
/// How often it is looked whether something has ended.
const LOOK: Duration = Duration::from_millis(10);
/// The same for the process that stands between.
const MOMENT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};
/// How often that one tries to end what is left, a moment apart: what hangs in the kernel, or is another user's, is left
/// to whoever gets it next.
const LOOKS: u32 = 200;
/// How long it is waited for after that.
const PATIENCE: Duration = Duration::from_secs(3);

/// A program that runs.
pub(super) struct Held {
    /// The process that stands between.
    process: Child,
    /// The program is to go on while this is open.
    wanted: PipeWriter,
}

impl Held {
    /// Starts a program.
    ///
    /// # Errors
    /// What the kernel says, of the program too.
    pub(super) fn start(mut command: Command) -> io::Result<Self> {
        let (watched, wanted) = pipe()?;
        let between = move || hold(watched.as_fd());
        // SAFETY: what `hold` does between fork and exec are system calls, but for fork(3), whose locks are those of a
        // process that has just been forked: free. It reads what it owns, and asks for no memory.
        unsafe { command.pre_exec(between) };
        let process = command.spawn()?;
        Ok(Self { process, wanted })
    }

    /// Waits for the end of the program, and of what it has started; nothing where it had to be killed after `limit`.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn end(self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let Self {
            mut process,
            wanted,
        } = self;
        if let Some(status) = ended(&mut process, limit)? {
            return Ok(Some(status));
        }
        drop(wanted);
        if ended(&mut process, PATIENCE)?.is_none() {
            // The program, which is its child, ends with it.
            process.kill()?;
            process.wait()?;
        }
        Ok(None)
    }
}

/// Waits so long for the end of a process.
fn ended(process: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let end = Instant::now() + patience;
    loop {
        if let Some(status) = process.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// Goes on as the program in a child of this process, which is itself the one that stands between, and does not come
/// back. From here on nothing may take a lock or ask for memory: another thread, which is not in this copy of its
/// process, may have been at it.
fn hold(watched: BorrowedFd<'_>) -> io::Result<()> {
    let holder = getpid();
    // What a terminal or a person sends to a group is not for it.
    setpgid(None, None)?;
    set_child_subreaper(Some(holder))?;
    // SAFETY: both go on with system calls alone.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => begin(holder),
        program => keep(program, watched),
    }
}

/// What is left to do before the program begins.
fn begin(holder: Pid) -> io::Result<()> {
    setpgid(None, None)?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    match getppid() == Some(holder) {
        true => Ok(()),
        false => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// Stands between: ends as the program does.
fn keep(program: i32, watched: BorrowedFd<'_>) -> ! {
    hear_no_signal();
    close_all_but(watched);
    let _ = set_name(NAME);
    let mut status = None;
    if let Some(program) = Pid::from_raw(program) {
        wait_for(program, watched);
        status = end_all(program);
    }
    // SAFETY: it ends this process at once; nothing runs of what it is a copy of.
    unsafe { libc::_exit(code(status)) }
}

/// Nothing but SIGKILL ends it before the program.
fn hear_no_signal() {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is this function's, and is filled before it is read.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), std::ptr::null_mut());
    }
}

/// Closes what belongs to the process that this one is a copy of: whoever waits for the end of it does so in vain
/// otherwise, as this process would.
fn close_all_but(kept: BorrowedFd<'_>) {
    let kept = kept.as_raw_fd().unsigned_abs();
    let below = kept.checked_sub(1).map(|last| (0, last));
    let above = kept.checked_add(1).map(|first| (first, u32::MAX));
    for (first, last) in below.into_iter().chain(above) {
        // SAFETY: what owns these descriptors is never used again in this copy.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Waits until the program has ended or is not wanted any more.
fn wait_for(program: Pid, watched: BorrowedFd<'_>) {
    // Its end is only seen: its id stays its own until its group is killed.
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    while let Ok(None) | Err(Errno::INTR) = waitid(WaitId::Pid(program), look) {
        // The end of whoever has the other end of it is heard of whatever is asked for.
        let mut other_end = [PollFd::new(&watched, PollFlags::empty())];
        match poll(&mut other_end, Some(&MOMENT)) {
            Ok(0) | Err(Errno::INTR) => {}
            _ => return,
        }
    }
}

/// Kills all that is left, and hears of its end. How the program has ended.
fn end_all(program: Pid) -> Option<WaitStatus> {
    let mut ended = None;
    let _ = kill_process_group(program, Signal::KILL);
    for _ in 0..LOOKS {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((child, status))) if child == program => ended = Some(status),
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => break,
                // There is none any more.
                Err(_) => return ended,
            }
        }
        kill_children();
        // The children of those that end are this process's then.
        let _ = poll(&mut [], Some(&MOMENT));
    }
    ended
}

/// Kills the children of this process, as many as are listed at once.
fn kill_children() {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let list = openat(CWD, c"/proc/thread-self/children", flags, Mode::empty());
    let Ok(list) = list else { return };
    let mut text = [0; 4096];
    let Ok(length) = rustix::io::read(&list, &mut text[..]) else {
        return;
    };
    let text = text.get(..length).unwrap_or_default();
    // Each is followed by a space; the last one may be there in part.
    let whole = text.iter().rposition(|byte| *byte == b' ').unwrap_or(0);
    let text = text.get(..whole).unwrap_or_default();
    for id in text.split(|byte| *byte == b' ') {
        let id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
        if let Some(child) = id.and_then(Pid::from_raw) {
            let _ = kill_process(child, Signal::KILL);
        }
    }
}

/// The status of a program as a shell tells it.
fn code(status: Option<WaitStatus>) -> i32 {
    let of_signal = |signal: i32| 128 + signal;
    let killed = of_signal(Signal::KILL.as_raw());
    status.map_or(killed, |status| {
        let by_signal = || status.terminating_signal().map_or(killed, of_signal);
        status.exit_status().unwrap_or_else(by_signal)
    })
}
