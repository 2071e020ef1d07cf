//! Real faults of system calls, by seccomp: a filter that forbids some, and one whose calls a thread of
//! the test answers one by one (seccomp_unotify(2)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

/// A filter that does `what` with the given calls and lets all others through.
fn program(calls: &[libc::c_long], what: u32) -> Vec<libc::sock_filter> {
    let filter = |code: u32, jt: usize, k: u32| libc::sock_filter {
        code: code as u16,
        jt: jt as u8,
        jf: 0,
        k,
    };
    // The number of the call is the first word of `struct seccomp_data`.
    let mut program = vec![filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (i, call) in calls.iter().enumerate() {
        let to_end = calls.len() - i;
        let jump = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        program.push(filter(jump, to_end, *call as u32));
    }
    program.push(filter(libc::BPF_RET | libc::BPF_K, 0, ALLOW));
    program.push(filter(libc::BPF_RET | libc::BPF_K, 0, what));
    program
}

/// Installs a filter in the calling thread. Nothing here allocates: it may run between fork and exec.
fn install(program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<RawFd> {
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: both calls only read their arguments, which live until they return.
    let installed = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        let set = libc::SECCOMP_SET_MODE_FILTER;
        libc::syscall(libc::SYS_seccomp, set, flags, &raw const filter)
    };
    match installed {
        -1 => Err(io::Error::last_os_error()),
        fd => Ok(fd as RawFd),
    }
}

/// Has the given calls of a process to come fail with an error number.
pub fn forbid(command: &mut Command, calls: &[libc::c_long], errno: i32) {
    let program = program(calls, libc::SECCOMP_RET_ERRNO | errno as u32);
    // SAFETY: `install` does nothing but two system calls.
    unsafe { command.pre_exec(move || install(&program, 0).map(drop)) };
}

/// As [`forbid`], where the lower half of an argument of the call is not 0: for calls with flags.
pub fn forbid_flags(command: &mut Command, call: libc::c_long, argument: u32, errno: i32) {
    forbid_bits(command, call, argument, u32::MAX, errno);
}

/// The same where any of these bits is set.
pub fn forbid_bits(
    command: &mut Command,
    call: libc::c_long,
    argument: u32,
    bits: u32,
    errno: i32,
) {
    let filter = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let (jump, end) = (libc::BPF_JMP | libc::BPF_K, libc::BPF_RET | libc::BPF_K);
    // The arguments of `struct seccomp_data` begin at 16, with 8 bytes each.
    let half = if cfg!(target_endian = "big") { 4 } else { 0 };
    let program = [
        filter(load, 0, 0, 0),
        filter(jump | libc::BPF_JEQ, 0, 3, call as u32),
        filter(load, 0, 0, 16 + 8 * argument + half),
        filter(jump | libc::BPF_JSET, 0, 1, bits),
        filter(end, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        filter(end, 0, 0, ALLOW),
    ];
    // SAFETY: `install` does nothing but two system calls.
    unsafe { command.pre_exec(move || install(&program, 0).map(drop)) };
}

/// What becomes of a call: `None` lets it through, an error number fails it.
pub type Answer = Option<i32>;

/// Answers calls until all threads under the filter have ended.
pub struct Supervisor(JoinHandle<()>);

impl Supervisor {
    /// It must not be under the filter itself: it waits for the listener of one that is made later.
    fn start(
        mut answer: impl FnMut(&[u64; 6]) -> Answer + Send + 'static,
    ) -> (SyncSender<OwnedFd>, Self) {
        let (give, given) = sync_channel::<OwnedFd>(1);
        let thread = std::thread::spawn(move || {
            let Ok(listener) = given.recv() else { return };
            while let Some((id, arguments)) = receive(&listener) {
                send(&listener, id, answer(&arguments));
            }
        });
        (give, Self(thread))
    }

    /// Waits for the end of the last thread under the filter.
    pub fn join(self) {
        self.0.join().unwrap();
    }
}

/// Has `answer` decide about each of the given calls of the calling thread, from now on. It is told the
/// arguments.
pub fn supervise_this_thread(
    call: libc::c_long,
    answer: impl FnMut(&[u64; 6]) -> Answer + Send + 'static,
) -> Supervisor {
    let (give, supervisor) = Supervisor::start(answer);
    let program = program(&[call], libc::SECCOMP_RET_USER_NOTIF);
    let listener = install(&program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER).unwrap();
    // SAFETY: the kernel has just made this descriptor for us.
    give.send(unsafe { OwnedFd::from_raw_fd(listener) })
        .unwrap();
    supervisor
}

/// How many syncs of certain files succeed yet.
#[derive(Debug)]
pub struct Syncs(AtomicU32);

impl Syncs {
    /// Has so many more succeed, and fail those that come then.
    pub fn allow(&self, more: u32) {
        self.0.store(more, Ordering::SeqCst);
    }

    /// Has all succeed.
    pub fn allow_all(&self) {
        self.allow(u32::MAX);
    }

    fn answer(&self) -> Answer {
        let take = |left: u32| match left {
            u32::MAX => Some(left),
            left => left.checked_sub(1),
        };
        let taken = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        taken.is_err().then_some(libc::EIO)
    }
}

/// Does some work on a thread of its own. When a file or directory of that name is synced there, or on threads that the
/// work begins, that fails as the work says: what was written stays in the page cache, as after a real failure. At first
/// all syncs succeed.
pub fn with_failing_syncs(name: &'static str, work: impl FnOnce(&Syncs) + Send) {
    let syncs = Arc::new(Syncs(AtomicU32::new(u32::MAX)));
    let judge = Arc::clone(&syncs);
    let supervisor = std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            let supervisor = supervise_this_thread(libc::SYS_fsync, move |arguments| {
                let path = std::fs::read_link(format!("/proc/self/fd/{}", arguments[0])).ok()?;
                match path.file_name() == Path::new(name).file_name() {
                    true => judge.answer(),
                    false => None,
                }
            });
            work(&syncs);
            supervisor
        });
        working.join().unwrap()
    });
    supervisor.join();
}

/// Starts a process whose calls, and those of its children, `answer` decides about.
pub fn spawn_supervised(
    command: &mut Command,
    call: libc::c_long,
    answer: impl FnMut(&[u64; 6]) -> Answer + Send + 'static,
) -> io::Result<(std::process::Child, Supervisor)> {
    let program = program(&[call], libc::SECCOMP_RET_USER_NOTIF);
    let (ours, theirs) = UnixStream::pair()?;
    let send = move || {
        let listener = install(&program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
        let sent = theirs.send_with_fd(&[0u8][..], listener);
        sent.map(drop).map_err(io::Error::from)
    };
    // SAFETY: system calls only.
    unsafe { command.pre_exec(send) };
    let child = command.spawn()?;
    let (_, listener) = ours.recv_with_fd(&mut [0]).map_err(io::Error::from)?;
    let listener = listener.ok_or(io::ErrorKind::NotFound)?;
    let (give, supervisor) = Supervisor::start(answer);
    give.send(listener.into()).map_err(io::Error::other)?;
    Ok((child, supervisor))
}

/// The next call, or `None` when there can be no more.
fn receive(listener: &OwnedFd) -> Option<(u64, [u64; 6])> {
    loop {
        let mut poll = libc::pollfd {
            fd: listener.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
        if poll.revents & libc::POLLIN == 0 {
            return None;
        }
        // SAFETY: all zeros is a valid value of this plain structure, and what the kernel asks for.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the structure is what the request takes.
        let got = unsafe {
            libc::ioctl(
                listener.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_RECV,
                &raw mut call,
            )
        };
        // A thread that was killed meanwhile takes its call along.
        if got == 0 {
            return Some((call.id, call.data.args));
        }
    }
}

fn send(listener: &OwnedFd, id: u64, answer: Answer) {
    let (error, flags) = match answer {
        Some(errno) => (-errno, 0),
        None => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
    };
    let mut response = libc::seccomp_notif_resp {
        id,
        val: 0,
        error,
        flags,
    };
    // SAFETY: the structure is what the request takes. It fails when the thread is gone.
    unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SEND,
            &raw mut response,
        )
    };
}
