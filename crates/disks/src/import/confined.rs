//! Starting a program that reads a hostile image: with the descriptors that it is given, and with as
//! little as possible beside them.
//!
//! QEMU's image formats are a lot of code that was never meant to be a boundary. So whoever takes over
//! such a program finds itself
//!
//! * as nobody, when this process is root's, and without privileges to gain;
//! * without a network (an empty namespace) and without new sockets (seccomp);
//! * without files but those that programs need to start, which it may only read (Landlock, and
//!   seccomp for what makes or changes files): the image itself comes over a socket;
//! * as one process with threads, which can start no other one (seccomp), with bounded memory, without a
//!   core dump, and dead when this process is.
//!
//! A kernel that lacks one of these has the others; this program's own user and seccomp are everywhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};
use rustix::process::{Gid, Resource, Rlimit, Uid, setrlimit};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// The user and the group that own nothing: `nobody` of Debian and of Linux itself (the overflow ids).
const NOBODY: u32 = 65534;
/// Descriptors that a program may have.
const MAX_FILES: u64 = 64;

/// What a program may take of the host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    /// Bytes of address space.
    pub(super) memory: u64,
    /// Seconds of CPU time.
    pub(super) cpu_seconds: u64,
}

/// The program in `PATH`.
///
/// # Errors
/// `NotFound`.
pub(super) fn find(program: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| {
            file.metadata()
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// A command for `program` that starts confined, with the descriptors `fds` from number 3 on. The caller
/// adds arguments and standard output.
///
/// # Errors
/// What the system said.
pub(super) fn command(program: &Path, fds: Vec<OwnedFd>, most: Most) -> io::Result<Command> {
    // `$$` is the process that will be the program: who is given a listening socket asks for that.
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
        .arg(program)
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/bin:/bin")
        .env("LISTEN_FDS", "1")
        // An arena for each thread would count as memory.
        .env("MALLOC_ARENA_MAX", "1")
        .current_dir("/")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        // A terminal's Ctrl-C is for this process, which then ends the child in order.
        .process_group(0);
    let first_free = 3 + fds.len() as u32;
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
    // Behind the numbers that the program's descriptors get, which would close it.
    let files = may_read(program)?
        .map(|rules| rustix::io::fcntl_dupfd_cloexec(rules, first_free as i32))
        .transpose()?;
    let filters = filters()?;
    let parent = rustix::process::getpid();
    let confine = move || {
        close_on_exec_from(first_free);
        // Now: a root without all privileges could not limit somebody else later.
        limit(most)?;
        leave_network();
        become_nobody()?;
        rustix::thread::set_no_new_privs(true)?;
        if let Some(files) = &files {
            restrict_files(files)?;
        }
        // Only now: a change of the user takes it back.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        if rustix::process::getppid() != Some(parent) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        for filter in &filters {
            seccompiler::apply_filter(filter)
                .map_err(|_| io::Error::from(io::ErrorKind::PermissionDenied))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec `confine` only makes system calls and reads what it owns: it takes
    // no lock and asks for no memory.
    unsafe { command.pre_exec(confine) };
    Ok(command)
}

/// Descriptors that whoever started this process left open are not for the program.
fn close_on_exec_from(first: u32) {
    // SAFETY: marks descriptors and closes none. Kernels before 5.11 refuse it, which leaves what was
    // inherited as it is.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
}

fn limit(most: Most) -> io::Result<()> {
    for (resource, most) in [
        (Resource::As, most.memory),
        (Resource::Cpu, most.cpu_seconds),
        (Resource::Core, 0),
        (Resource::Fsize, 0),
        (Resource::Nofile, MAX_FILES),
    ] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(resource, limit)?;
    }
    Ok(())
}

/// Where ordinary users get no namespaces, seccomp still gives no socket.
fn leave_network() {
    let alone = UnshareFlags::NEWNET | UnshareFlags::NEWIPC;
    // SAFETY: the flags unshare neither memory nor the descriptor table; the process has one thread.
    let unshare = |flags| unsafe { unshare_unsafe(flags) };
    let _ = unshare(alone).or_else(|_| unshare(alone | UnshareFlags::NEWUSER));
}

fn become_nobody() -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let become_them = || {
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(group, group, group)?;
        rustix::thread::set_thread_res_uid(user, user, user)
    };
    match become_them() {
        // A root without that privilege, or a namespace without nobody: a container's, that is.
        Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL) => Ok(()),
        result => Ok(result?),
    }
}

fn restrict_files(rules: &OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is that of a rule set, which is open; no memory is passed.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The files that a program needs to start, read-only; nothing when the kernel has no Landlock.
fn may_read(program: &Path) -> io::Result<Option<OwnedFd>> {
    let abi = ABI::V6;
    let other = |e: landlock::RulesetError| io::Error::other(e);
    let read = AccessFs::from_read(abi);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(abi)))
        .and_then(|rules| rules.scope(Scope::from_all(abi)))
        .and_then(|rules| rules.create())
        .map_err(other)?;
    let prefix = program.parent().and_then(Path::parent);
    let libraries = ["lib", "lib64", "libexec"].map(|name| prefix.map(|prefix| prefix.join(name)));
    let fixed = [
        "/usr",
        "/bin",
        "/lib",
        "/lib64",
        "/nix/store",
        "/gnu/store",
        "/etc/ld.so.cache",
        "/etc/ld.so.preload",
        "/dev/urandom",
        "/dev/random",
        "/sys/devices/system",
    ]
    .map(|path| Some(PathBuf::from(path)));
    let readable = fixed.into_iter().chain(libraries).flatten();
    let allowed = readable
        .chain([program.to_owned()])
        .map(|path| (path, read))
        .chain([("/dev/null".into(), read | AccessFs::WriteFile)]);
    for (path, access) in allowed {
        // What is not there needs no rule.
        let Ok(file) = File::open(&path) else {
            continue;
        };
        let access: BitFlags<AccessFs> = match file.metadata()?.is_dir() {
            true => access,
            false => access & AccessFs::from_file(abi),
        };
        rules = rules
            .add_rule(PathBeneath::new(file, access))
            .map_err(other)?;
    }
    Ok(rules.into())
}

/// Refuses what makes processes and sockets, makes or changes files, or reaches other processes and the
/// kernel's less travelled parts. It is a list of what is refused, since QEMU and its libraries change what
/// they need with every version.
fn filters() -> io::Result<[BpfProgram; 2]> {
    let refused = [
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_io_uring_setup,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_kcmp,
        libc::SYS_perf_event_open,
        libc::SYS_bpf,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_open_by_handle_at,
        libc::SYS_openat2,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_mkdirat,
        libc::SYS_mknodat,
        libc::SYS_linkat,
        libc::SYS_symlinkat,
        libc::SYS_renameat2,
        libc::SYS_unlinkat,
        libc::SYS_truncate,
        libc::SYS_fchmodat,
        libc::SYS_fchownat,
        libc::SYS_setxattr,
        libc::SYS_lsetxattr,
        libc::SYS_removexattr,
        libc::SYS_utimensat,
    ];
    #[cfg(target_arch = "x86_64")]
    let older = [
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_creat,
        libc::SYS_mkdir,
        libc::SYS_rmdir,
        libc::SYS_mknod,
        libc::SYS_link,
        libc::SYS_symlink,
        libc::SYS_rename,
        libc::SYS_renameat,
        libc::SYS_unlink,
        libc::SYS_chmod,
        libc::SYS_chown,
        libc::SYS_lchown,
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let older = [];
    let other = |e: seccompiler::BackendError| io::Error::other(e);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = refused
        .into_iter()
        .chain(older)
        .map(|call| (call, Vec::new()))
        .collect();
    let masked = |argument, flag: i32, value: u64| {
        let mask = SeccompCmpOp::MaskedEq(flag as u64);
        let is = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, mask, value)?;
        SeccompRule::new(vec![is])
    };
    let with = |argument, flag: i32| masked(argument, flag, flag as u64);
    let makes = |argument| {
        [libc::O_CREAT, libc::O_TRUNC]
            .into_iter()
            .map(|flag| with(argument, flag))
            .collect::<Result<Vec<_>, _>>()
    };
    rules.insert(libc::SYS_openat, makes(2).map_err(other)?);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, makes(1).map_err(other)?);
    // Threads are no processes.
    let process = masked(0, libc::CLONE_THREAD, 0).map_err(other)?;
    rules.insert(libc::SYS_clone, vec![process]);
    // Its flags are in memory, where no filter looks; a C library then takes the call above.
    let newer = [(libc::SYS_clone3, Vec::new())].into();
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(other)?;
    let compiled = |rules, errno: i32| {
        let refuse = SeccompAction::Errno(errno as u32);
        SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)
            .and_then(TryInto::try_into)
            .map_err(other)
    };
    Ok([
        compiled(rules, libc::EPERM)?,
        compiled(newer, libc::ENOSYS)?,
    ])
}
