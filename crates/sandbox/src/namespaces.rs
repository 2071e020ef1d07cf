//! Namespaces of a process's own, and a root directory with nothing in it.

use std::io;
use std::process::exit;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::process::{
    DumpableBehavior, Pid, chdir, getegid, geteuid, pivot_root, set_dumpable_behavior,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::error::io_error;
use crate::{Missing, SandboxError};

/// The namespaces of a confined process, and what each keeps from it.
pub const NAMESPACES: [(UnshareFlags, &str, &str); 5] = [
    (
        UnshareFlags::NEWNS,
        "mount namespace",
        "its root directory is empty: there is no path, no /proc and no socket in a file system",
    ),
    (
        UnshareFlags::NEWPID,
        "PID namespace",
        "no other process can be named: none signalled, none traced",
    ),
    (
        UnshareFlags::NEWNET,
        "network namespace",
        "no network, no abstract socket",
    ),
    (
        UnshareFlags::NEWIPC,
        "IPC namespace",
        "no shared memory and no queues of System V",
    ),
    (
        UnshareFlags::NEWUTS,
        "UTS namespace",
        "the name of the host cannot be changed",
    ),
];

/// Which namespaces a process has for itself.
#[derive(Debug, Clone, Copy)]
pub struct Isolated(UnshareFlags);

impl Isolated {
    /// Whether it has mounts of its own.
    pub fn has_mounts(self) -> bool {
        self.0.contains(UnshareFlags::NEWNS)
    }

    /// Whether it is the first process of its namespace, which no signal ends that it does not handle.
    pub fn is_first_process(self) -> bool {
        self.0.contains(UnshareFlags::NEWPID)
    }

    /// Whether limits for the processes of its user count none outside.
    pub fn counts_alone(self) -> bool {
        self.0.contains(UnshareFlags::NEWUSER)
    }
}

/// Goes on in a child that has all namespaces of its own: the first process of its PID namespace can only be a child.
/// This process tells `tell` the child's id and ends; its parent becomes the child's. Where the kernel does not
/// allow that, this process itself goes on, with the namespaces that it can have, and tells its own id.
///
/// Root needs no user namespace for it. Anybody else becomes who they are in one of their own, where they
/// have all capabilities until these are dropped.
///
/// # Errors
/// [`SandboxError::Io`].
pub fn isolate(missing: &mut Missing, tell: impl FnOnce(Pid)) -> Result<Isolated, SandboxError> {
    isolate_in(&NAMESPACES, missing, tell)
}

/// As [`isolate`], for a process that needs the network of the host.
///
/// # Errors
/// As [`isolate`].
pub fn isolate_with_network(
    missing: &mut Missing,
    tell: impl FnOnce(Pid),
) -> Result<Isolated, SandboxError> {
    let others = NAMESPACES
        .into_iter()
        .filter(|(flag, ..)| *flag != UnshareFlags::NEWNET);
    isolate_in(&others.collect::<Vec<_>>(), missing, tell)
}

/// A namespace, its name, and what it keeps from a process.
type Namespace = (UnshareFlags, &'static str, &'static str);

fn isolate_in(
    namespaces: &[Namespace],
    missing: &mut Missing,
    tell: impl FnOnce(Pid),
) -> Result<Isolated, SandboxError> {
    let all = namespaces
        .iter()
        .fold(UnshareFlags::empty(), |all, (flag, ..)| all | *flag);
    let with_user = all | UnshareFlags::NEWUSER;
    let ways: &[UnshareFlags] = match geteuid().is_root() {
        true => &[all, with_user],
        false => &[with_user],
    };
    let ids = Ids::now();
    let mut refused = Errno::PERM;
    for way in ways {
        match fork_into(*way) {
            Ok(Some(child)) => {
                tell(child);
                exit(0);
            }
            Ok(None) => {
                end_by_abort();
                if way.contains(UnshareFlags::NEWUSER) {
                    missing.or_note("its user in a namespace of its own", ids.map());
                }
                return Ok(Isolated(*way));
            }
            Err(error) => refused = error,
        }
    }
    tell(rustix::process::getpid());
    Ok(alone(namespaces, refused, missing))
}

/// What a process can have that is not allowed to have everything.
fn alone(namespaces: &[Namespace], refused: Errno, missing: &mut Missing) -> Isolated {
    let mut had = UnshareFlags::empty();
    for (flag, name, _) in namespaces {
        // Its own children would be in another one, not the process itself.
        let result = match *flag == UnshareFlags::NEWPID {
            true => Err(refused),
            // SAFETY: the flag shares or unshares neither memory nor the descriptor table, which is what could break
            // I/O safety; the process has one thread.
            false => unsafe { unshare_unsafe(*flag) },
        };
        if missing.or_note(&format!("a {name}"), result).is_some() {
            had |= *flag;
        }
    }
    Isolated(had)
}

/// As fork(2), into new namespaces, for a child of this process's own parent. `None` in the child.
fn fork_into(namespaces: UnshareFlags) -> Result<Option<Pid>, Errno> {
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD)
        | libc::c_long::from(namespaces.bits());
    // SAFETY: without CLONE_VM and without a stack this is a fork: the child has a copy of everything, and goes on here.
    // The process has one thread, so no lock of the C library is held by another one.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match child {
        -1 => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::PERM)),
        0 => Ok(None),
        child => {
            let id = i32::try_from(child).ok().and_then(Pid::from_raw);
            id.map(Some).ok_or(Errno::RANGE)
        }
    }
}

/// Has abort(3) end this process with the status that a shell would tell: no signal without a handler reaches the
/// first process of a namespace.
fn end_by_abort() {
    extern "C" fn end(signal: libc::c_int) {
        // SAFETY: it may be called in a handler (signal-safety(7)).
        unsafe { libc::_exit(128 + signal) }
    }
    // SAFETY: the handler calls nothing but what it may.
    unsafe {
        libc::signal(
            libc::SIGABRT,
            end as extern "C" fn(libc::c_int) as libc::sighandler_t,
        )
    };
}

/// Who a process is outside of its user namespace.
struct Ids {
    user: u32,
    group: u32,
}

impl Ids {
    fn now() -> Self {
        Self {
            user: geteuid().as_raw(),
            group: getegid().as_raw(),
        }
    }

    /// Has the same ids mean the same users within the namespace.
    fn map(&self) -> io::Result<()> {
        // The files of a process that cannot be dumped belong to root.
        set_dumpable_behavior(DumpableBehavior::Dumpable)?;
        let mapped = put(c"/proc/self/setgroups", "deny")
            .and_then(|()| put(c"/proc/self/uid_map", &format!("{0} {0} 1", self.user)))
            .and_then(|()| put(c"/proc/self/gid_map", &format!("{0} {0} 1", self.group)));
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        mapped
    }
}

fn put(path: &std::ffi::CStr, text: &str) -> io::Result<()> {
    let file = openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::io::write(&file, text.as_bytes())? {
        all if all == text.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Directories to mount something on for a moment: every host has one of them.
const PLACES: [&str; 4] = ["/proc", "/tmp", "/dev", "/usr"];

/// Gives this process, which has mounts of its own, an empty root directory that cannot be written to. What it has open
/// stays open.
///
/// # Errors
/// [`SandboxError::Io`].
pub fn empty_root() -> Result<(), SandboxError> {
    let fail = io_error("enter an empty root directory");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(&fail)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = c"size=4k,nr_inodes=2,mode=0555";
    let mut refused = Errno::NOENT;
    let place = PLACES.into_iter().find(|place| {
        let mounted = mount("none", *place, "tmpfs", flags, options);
        mounted.map_err(|error| refused = error).is_ok()
    });
    let place = place.ok_or(refused).map_err(&fail)?;
    chdir(place).map_err(&fail)?;
    // The old root comes to lie over the new one, and is taken off.
    pivot_root(".", ".").map_err(&fail)?;
    unmount(".", UnmountFlags::DETACH).map_err(&fail)?;
    chdir("/").map_err(&fail)
}
