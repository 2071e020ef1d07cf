//! Confining the attach process itself.
//!
//! No guest reaches it but through a data plane that it took over, whose words are few and checked. It still asks
//! vaults over networks, follows commands on its control socket, opens the files of layers when these change, and uses
//! whatever an HSM's library does. So it is told what it may not do, rather than what it may: it keeps the capabilities
//! that it needs for files, it changes no file but those of the installation, of the runtime directory and of
//! disks, and it makes no system call that only an attacker would.
//!
//! What starts data planes is another process, the launcher (crate `sandbox`): Landlock forbids this one and all that
//! it starts to mount, which an empty root directory takes. It forbids to look at other processes too, so the launcher
//! also opens the mappings of a VMM that is connected.

use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use rustix::thread::CapabilitySet;

use crate::begin::request::AttachRequest;
use crate::begin::socket::SocketSource;
use crate::error::AttachError;
use disks::{Disk, DiskError};
use installation::Installation;
use sandbox::calls::{Call, Only, refuse};
use sandbox::landlock::{Keeps, Use, restrict};
use sandbox::{Missing, Rule, drop_to, listed, named};

/// As it is called in messages.
const PROCESS: &str = "attach process";

/// What root's attach process keeps, and why.
const KEPT: [(CapabilitySet, &str, &str); 7] = [
    (
        CapabilitySet::DAC_OVERRIDE,
        "CAP_DAC_OVERRIDE",
        "disks and sockets in directories of other users",
    ),
    (
        CapabilitySet::DAC_READ_SEARCH,
        "CAP_DAC_READ_SEARCH",
        "the same, to be read",
    ),
    (
        CapabilitySet::FOWNER,
        "CAP_FOWNER",
        "permissions of sockets and layers",
    ),
    (
        CapabilitySet::CHOWN,
        "CAP_CHOWN",
        "the group of the socket (--socket-group)",
    ),
    (
        CapabilitySet::IPC_LOCK,
        "CAP_IPC_LOCK",
        "keys in locked memory, whatever the limit",
    ),
    (
        CapabilitySet::SYS_RESOURCE,
        "CAP_SYS_RESOURCE",
        "audit records on a file system that is full for others",
    ),
    (
        CapabilitySet::KILL,
        "CAP_KILL",
        "a data plane whose launcher has ended: a revoked key must not live on in it",
    ),
];

/// Where programs and libraries are.
const PROGRAMS: [&str; 9] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt",
    "/nix/store",
    "/gnu/store",
];

/// What is not of an installation and may be changed all the same: temporary files, devices of TPMs and HSMs.
const SCRATCH: [&str; 3] = ["/tmp", "/var/tmp", "/dev"];

/// Confines this process for good, before it has a key: `changed` is where it may change files, `program` the file of
/// this program. It should have one thread: others keep their capabilities and their files.
///
/// # Errors
/// [`AttachError::Sandbox`], by `--sandbox strict`, when a part of it cannot be had.
pub(crate) fn confine(
    changed: &[PathBuf],
    program: &Path,
    request: &AttachRequest,
) -> Result<(), AttachError> {
    let mut missing = Missing::default();
    if geteuid().is_root() {
        let kept = KEPT
            .iter()
            .fold(CapabilitySet::empty(), |all, (one, ..)| all | *one);
        missing.or_note("fewer capabilities", drop_to(kept));
    }
    let programs = PROGRAMS
        .iter()
        .map(Path::new)
        .map(|path| (path, Use::Execute));
    // What takes over from this program is there as a rule. What could be written there must not be executed.
    let own = program.parent().filter(|own| {
        !untrusted(changed)
            .iter()
            .any(|changed| changed.canonicalize().is_ok_and(|it| own.starts_with(it)))
    });
    let rules = programs
        .chain(own.map(|own| (own, Use::Execute)))
        .chain([(Path::new("/"), Use::Read)])
        .chain(changed.iter().map(|path| (path.as_path(), Use::Change)));
    restrict(Keeps::Files, rules, &mut missing);
    missing.or_note("a filter of system calls", refuse(&refused()));
    Ok(missing.settle(request.launch.sandbox, PROCESS)?)
}

/// Everything: where the library of a token has its files only that knows.
const EVERYWHERE: &str = "/";

/// The directories of `changed` from which no program may be started with more privileges. Who may change everything
/// may change this program too.
pub(crate) fn untrusted(changed: &[PathBuf]) -> &[PathBuf] {
    match changed {
        [all] if all == Path::new(EVERYWHERE) => &[],
        some => some,
    }
}

/// The directories in which it changes files.
///
/// # Errors
/// [`AttachError::Disk`].
pub(crate) fn changed(
    installation: &Installation,
    disk: &Disk,
    request: &AttachRequest,
) -> Result<Vec<PathBuf>, AttachError> {
    let catalog = installation.catalog();
    let vaults = catalog.vaults().map_err(DiskError::from)?;
    if vaults
        .iter()
        .any(|vault| vault.record.kind.token().is_some())
    {
        return Ok(vec![EVERYWHERE.into()]);
    }
    let mut directories = vec![
        installation.state_dir().to_owned(),
        request.runtime_dir.clone(),
        disk.directory().to_owned(),
    ];
    // Snapshots are made beside their disk, unless it is said where.
    directories.extend(disk.directory().parent().map(Path::to_owned));
    directories.extend(request.data_dirs.iter().cloned());
    if let SocketSource::Path(socket, _) = &request.socket {
        let parent = socket
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        directories.push(parent.unwrap_or(Path::new(".")).to_owned());
    }
    directories.extend(SCRATCH.iter().map(PathBuf::from));
    Ok(directories)
}

/// What it never calls, and what that could be used for.
fn refused() -> Vec<Call> {
    let mut calls = listed! {
        "to trace or change other processes": SYS_ptrace, SYS_process_vm_writev, SYS_pidfd_getfd, SYS_kcmp,
            SYS_process_madvise;
        "to mount, and to change what is mounted": SYS_mount, SYS_umount2, SYS_move_mount, SYS_open_tree, SYS_fsopen,
            SYS_fsmount, SYS_fsconfig, SYS_fspick, SYS_mount_setattr, SYS_pivot_root, SYS_chroot;
        "to enter or make namespaces": SYS_setns, SYS_unshare;
        "to load code into the kernel": SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load, SYS_bpf;
        "to watch the kernel or other processes": SYS_perf_event_open, SYS_lookup_dcookie, SYS_syslog, SYS_fanotify_init;
        "the kernel's keyrings": SYS_add_key, SYS_request_key, SYS_keyctl;
        "to become somebody else": SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid, SYS_setresgid,
            SYS_setfsuid, SYS_setfsgid, SYS_setgroups;
        "to change the host": SYS_reboot, SYS_swapon, SYS_swapoff, SYS_acct, SYS_quotactl, SYS_sethostname,
            SYS_setdomainname, SYS_settimeofday, SYS_clock_settime, SYS_clock_adjtime, SYS_adjtimex, SYS_vhangup;
        "to go around the permissions of paths": SYS_open_by_handle_at;
        "known for holes": SYS_userfaultfd, SYS_personality, SYS_nfsservctl;
    };
    #[cfg(target_arch = "x86_64")]
    calls.extend(listed! {
        "to load code into the kernel, by older names": SYS_kexec_file_load;
        "ports and segments of the processor": SYS_iopl, SYS_ioperm, SYS_modify_ldt;
        "devices": SYS_mknod;
        "known for holes, by older names": SYS_uselib, SYS__sysctl;
    });
    let namespaces = named!(
        CLONE_NEWNS,
        CLONE_NEWUSER,
        CLONE_NEWPID,
        CLONE_NEWNET,
        CLONE_NEWIPC,
        CLONE_NEWUTS,
        CLONE_NEWCGROUP
    );
    calls.push(
        Call {
            number: libc::SYS_clone,
            name: "clone",
            only: Vec::new(),
            why: "to make namespaces",
        }
        .only(Only::WithAny(0, namespaces)),
    );
    calls
}

/// What the attach process may do, and what is kept from it, with the reasons.
pub fn sandbox_rules() -> Vec<Rule> {
    let rule = |by, what: &str, allowed: String, why: &str| Rule {
        process: PROCESS,
        by,
        what: what.to_owned().into(),
        allowed: allowed.into(),
        why: why.to_owned().into(),
    };
    let mut rules = vec![rule(
        "user",
        "no_new_privs",
        "yes".into(),
        "no program gives it a privilege",
    )];
    let capabilities = KEPT.iter();
    rules.extend(
        capabilities.map(|(_, name, why)| rule("user", name, "if it is root's".into(), why)),
    );
    rules.extend([
        rule("Landlock", "/", "read".into(), "keys, certificates and settings, wherever they are"),
        rule("Landlock", &PROGRAMS.join(" "), "execute".into(), "programs of a TPM; another version of this program"),
        rule(
            "Landlock",
            "the directory of this program, unless it may change files there",
            "execute".into(),
            "another version of this program, which goes on in its place (upgrade)",
        ),
        rule(
            "Landlock",
            "state directory, runtime directory, directories of the disk, of its snapshots and of the socket",
            "change".into(),
            "what belongs to the disk; all files while a vault has its keys in an HSM",
        ),
        rule("Landlock", &SCRATCH.join(" "), "change".into(), "temporary files, devices of a TPM"),
    ]);
    rules.extend(refused().iter().map(|call| {
        let arguments = call.arguments();
        let refused = match arguments.is_empty() {
            true => "no".into(),
            false => format!("not {arguments}"),
        };
        rule("seccomp", call.name, refused, call.why)
    }));
    rules
}
