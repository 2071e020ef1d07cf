//! Confining a store process before it has anything of a data plane.
//!
//! It has no key and no plaintext. What it has is the way to the storage of one disk, and what answers it over a network is
//! read by a library in C++. So it keeps nothing of the host but that way: it becomes a user that nobody else is, has no
//! capability, changes no file, starts no program, and reaches no other process. Where the storage is files that it
//! has open, it has no path and no network either.

use std::io::Write;
use std::path::Path;

use rustix::process::{Pid, Resource, geteuid};

use sandbox::calls::{Call, Only, refuse};
use sandbox::landlock::{Keeps, Use, restrict};
use sandbox::{
    Launch, Missing, Privileges, empty_root, isolate, isolate_with_network, limit, listed, named,
    raise,
};

use crate::StoreProcessError;

/// As the attach process calls it.
const PROCESS: &str = "store process";

/// What it reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// What it has open.
    Nothing,
    /// A network. Names are resolved by files of the host, and a library reads some of its own.
    Network,
}

/// What a process with a network may read: settings and names, libraries, the time zone, itself.
const READABLE: [&str; 10] = [
    "/etc",
    "/usr",
    "/lib",
    "/lib64",
    "/opt",
    "/nix/store",
    "/gnu/store",
    "/proc",
    "/sys/devices/system",
    "/run/systemd/resolve",
];

/// A process that is being confined.
pub(crate) struct Confinement {
    launch: Launch,
    reach: Reach,
    missing: Missing,
    has_mounts: bool,
}

impl Confinement {
    /// Goes on in namespaces of its own: in a child, whose id this process tells on its standard output. It must have one
    /// thread.
    ///
    /// # Errors
    /// [`StoreProcessError::Sandbox`].
    pub(crate) fn begin(launch: Launch, reach: Reach) -> Result<Self, StoreProcessError> {
        let mut missing = Missing::default();
        let isolated = match reach {
            Reach::Nothing => isolate(&mut missing, tell)?,
            Reach::Network => isolate_with_network(&mut missing, tell)?,
        };
        // Whoever waits for the id waits no more.
        let nothing = std::io::stdin();
        rustix::stdio::dup2_stdout(nothing)
            .map_err(StoreProcessError::io("close standard output"))?;
        Ok(Self {
            launch,
            reach,
            missing,
            has_mounts: isolated.has_mounts(),
        })
    }

    /// Gives up everything else for good. It must still have one thread: those that are started later inherit it.
    ///
    /// # Errors
    /// [`StoreProcessError::Sandbox`]: it is not confined as it must be.
    pub(crate) fn finish(mut self) -> Result<(), StoreProcessError> {
        let missing = &mut self.missing;
        raise(Resource::Nofile, FILES);
        if self.reach == Reach::Nothing && self.has_mounts {
            missing.or_note("an empty root directory", empty_root());
        }
        let user = self.launch.user;
        if user.is_none() && geteuid().is_root() {
            missing.note("a user of its own", "it runs as root, and none was named");
        }
        Privileges { user }.give_up(missing);
        match self.reach {
            Reach::Nothing => restrict(Keeps::All, [], missing),
            Reach::Network => {
                let readable = READABLE.iter().map(|path| (Path::new(*path), Use::Read));
                let devices = DEVICES.iter().map(|path| (Path::new(*path), Use::Read));
                restrict(Keeps::Files, readable.chain(devices), missing);
            }
        }
        missing.or_note("a limit (RLIMIT_CORE)", limit(Resource::Core, 0));
        missing.or_note("a filter of system calls", refuse(&refused()));
        Ok(self.missing.settle(self.launch.sandbox, PROCESS)?)
    }
}

/// Descriptors: those of lanes, and connections to each part of a cluster.
const FILES: u64 = 16 << 10;

/// Devices that a library may read.
const DEVICES: [&str; 3] = ["/dev/null", "/dev/urandom", "/dev/random"];

fn tell(id: Pid) {
    // Who started it learns of a failure by the end of the process.
    let _ = std::io::stdout().write_all(&id.as_raw_pid().to_le_bytes());
    let _ = std::io::stdout().flush();
}

/// What it never calls, and what that could be used for. It is told what it may not do, since nobody here knows what a
/// library calls.
fn refused() -> Vec<Call> {
    let mut calls = listed! {
        "to start a program": SYS_execve, SYS_execveat;
        "to be connected to": SYS_listen, SYS_accept4;
        "to trace or change other processes": SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_pidfd_open,
            SYS_pidfd_getfd, SYS_kcmp, SYS_process_madvise;
        "to mount, and to change what is mounted": SYS_mount, SYS_umount2, SYS_move_mount, SYS_open_tree, SYS_fsopen,
            SYS_fsmount, SYS_fsconfig, SYS_fspick, SYS_mount_setattr, SYS_pivot_root, SYS_chroot;
        "to enter or make namespaces": SYS_setns, SYS_unshare;
        "to load code into the kernel": SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load, SYS_bpf;
        "to watch the kernel or other processes": SYS_perf_event_open, SYS_syslog, SYS_fanotify_init;
        "the kernel's keyrings": SYS_add_key, SYS_request_key, SYS_keyctl;
        "to become somebody else": SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid, SYS_setresgid,
            SYS_setfsuid, SYS_setfsgid, SYS_setgroups;
        "to change the host": SYS_reboot, SYS_swapon, SYS_swapoff, SYS_acct, SYS_quotactl, SYS_sethostname,
            SYS_setdomainname, SYS_settimeofday, SYS_clock_settime, SYS_clock_adjtime, SYS_adjtimex, SYS_vhangup;
        "operations that no filter sees": SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register;
        "to go around the permissions of paths": SYS_open_by_handle_at;
        "known for holes": SYS_userfaultfd, SYS_personality;
    };
    #[cfg(target_arch = "x86_64")]
    calls.extend(listed! {
        "to be connected to, by older names": SYS_accept;
        "to load code into the kernel, by older names": SYS_kexec_file_load;
        "ports and segments of the processor": SYS_iopl, SYS_ioperm, SYS_modify_ldt;
        "devices": SYS_mknod;
        "to start a process": SYS_fork, SYS_vfork;
    });
    calls.push(
        Call {
            number: libc::SYS_clone,
            name: "clone",
            only: Vec::new(),
            why: "to make namespaces",
        }
        .only(Only::WithAny(
            0,
            named!(
                CLONE_NEWNS,
                CLONE_NEWUSER,
                CLONE_NEWPID,
                CLONE_NEWNET,
                CLONE_NEWIPC,
                CLONE_NEWUTS,
                CLONE_NEWCGROUP
            ),
        )),
    );
    calls
}
