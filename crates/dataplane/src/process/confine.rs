//! Confining the data plane before the first byte of a guest is read.
//!
//! Whatever a guest can make this process do, it can do only with the descriptors that it has: no
//! file can be opened (Landlock), no program started, no socket connected, no other process traced
//! or signalled (seccomp), and nothing of that can be undone (no new privileges).

use std::collections::BTreeMap;

use landlock::{ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetStatus};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::DataplaneError;

/// Confines this process for good. It must still have a single thread: threads started later
/// inherit everything.
///
/// # Errors
/// [`DataplaneError::Confine`]; no guest must be served then. A kernel without Landlock, or one that
/// gives no namespaces to ordinary users, is only warned of: seccomp alone already keeps the process
/// from opening files by itself.
pub(crate) fn confine() -> Result<(), DataplaneError> {
    leave_network();
    rustix::thread::set_no_new_privs(true).map_err(|e| refuse("no new privileges", &e))?;
    forbid_files()?;
    let filter = filter().map_err(|e| refuse("seccomp", &e))?;
    seccompiler::apply_filter(&filter).map_err(|e| refuse("seccomp", &e))
}

fn refuse(what: &'static str, reason: &dyn std::fmt::Display) -> DataplaneError {
    DataplaneError::Confine {
        what,
        reason: reason.to_string(),
    }
}

/// io_uring can make sockets without a system call that seccomp sees, so the process is moved to a
/// network namespace in which there is nothing. Descriptors that are open already stay usable.
fn leave_network() {
    let unshare = |flags| {
        // SAFETY: neither flag shares or unshares memory or the descriptor table, which is what
        // could break I/O safety; the process has one thread.
        unsafe { unshare_unsafe(flags) }
    };
    let alone = UnshareFlags::NEWNET;
    if let Err(error) = unshare(alone).or_else(|_| unshare(alone | UnshareFlags::NEWUSER)) {
        log::warn!("the data plane keeps the host's network namespace: {error}");
    }
}

/// An empty Landlock rule set: no path can be opened, made, renamed or removed any more.
fn forbid_files() -> Result<(), DataplaneError> {
    let fail = |e: landlock::RulesetError| refuse("Landlock", &e);
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(|ruleset| ruleset.create())
        .and_then(|ruleset| ruleset.restrict_self())
        .map_err(fail)?;
    if status.ruleset == RulesetStatus::NotEnforced {
        log::warn!("this kernel has no Landlock: the data plane is confined by seccomp alone");
    }
    Ok(())
}

/// What the data plane needs, and nothing else; all else fails with `EPERM`.
///
/// It is not killed for a call that is not listed: a C library that tries a newer call first and
/// falls back must not take a guest's disk away.
fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let always = [
        // Messages, eventfds and the ring.
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_accept4,
        libc::SYS_shutdown,
        libc::SYS_getsockopt,
        libc::SYS_close,
        libc::SYS_fcntl,
        libc::SYS_flock,
        libc::SYS_fstat,
        libc::SYS_fstatfs,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_lseek,
        libc::SYS_pread64,
        libc::SYS_eventfd2,
        // In-flight regions.
        libc::SYS_memfd_create,
        libc::SYS_ftruncate,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_ppoll,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        // Memory and threads.
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_mlock,
        libc::SYS_mlock2,
        libc::SYS_munlock,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_clone3,
        libc::SYS_clone,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_restart_syscall,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_getrandom,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    // Older architectures have these beside the calls that replaced them.
    #[cfg(target_arch = "x86_64")]
    let older = [libc::SYS_epoll_wait, libc::SYS_poll];
    #[cfg(not(target_arch = "x86_64"))]
    let older = [];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = always
        .into_iter()
        .chain(older)
        .map(|call| (call, Vec::new()))
        .collect();
    // No memory that can be executed.
    let not_executable = SeccompCondition::new(
        2,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64),
        0,
    )?;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![SeccompRule::new(vec![not_executable.clone()])?]);
    }
    let only = |argument, value: u64| {
        let is = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
        SeccompRule::new(vec![is])
    };
    rules.insert(libc::SYS_ioctl, vec![only(1, libc::FIONBIO)?]);
    rules.insert(libc::SYS_prctl, vec![only(0, libc::PR_SET_NAME as u64)?]);
    // The runtime map gets its memory as it is needed, and keeps its length.
    rules.insert(
        libc::SYS_fallocate,
        vec![only(1, libc::FALLOC_FL_KEEP_SIZE as u64)?],
    );
    // A process that aborts signals itself; no other process can be signalled.
    rules.insert(
        libc::SYS_tgkill,
        vec![only(0, u64::from(std::process::id()))?],
    );
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, denied, SeccompAction::Allow, arch)?.try_into()
}
