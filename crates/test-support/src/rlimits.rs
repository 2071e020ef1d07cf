//! Limits of resources for a process to come.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

// Of linux/capability.h.
const CAP_IPC_LOCK: libc::c_int = 14;
const CAP_SYS_RESOURCE: libc::c_int = 24;

/// Lets a process to come have `most` of a resource (getrlimit(2)); a file that would be too long is an
/// error and no signal.
pub fn limit(command: &mut Command, resource: libc::__rlimit_resource_t, most: u64) {
    let limit = move || {
        let limit = libc::rlimit {
            rlim_cur: most,
            rlim_max: most,
        };
        // SAFETY: system calls on plain values. Without the capabilities a limit of locked memory holds
        // for root too, and cannot be raised; who is not root has none to give up.
        unsafe {
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0);
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_RESOURCE, 0, 0, 0);
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            match libc::setrlimit(resource, &raw const limit) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        }
    };
    // SAFETY: system calls only.
    unsafe { command.pre_exec(limit) };
}
