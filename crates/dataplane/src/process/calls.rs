//! The system calls that the data plane needs once it is confined, and what for.

use sandbox::calls::{Call, Only};
use sandbox::{listed, named};
use volume::store::{ENABLE_RINGS, RING_REGISTRATIONS};

use crate::disk::rings::SIGNAL_REGISTRATIONS;

/// What it may call, and nothing else.
pub(super) fn allowed() -> Vec<Call> {
    let mut calls = listed! {
        "messages of the frontend and of the attach process; eventfds":
            SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_recvfrom, SYS_sendto, SYS_recvmsg, SYS_sendmsg;
        "one frontend after another": SYS_accept4, SYS_shutdown, SYS_getsockopt;
        "descriptors that are not needed any more": SYS_close;
        "the connection of a data plane that died, in the place of another socket": SYS_dup3;
        "the claim of a layer that is beneath others now": SYS_flock;
        "the length and the kind of files that came": SYS_fstat, SYS_fstatfs, SYS_newfstatat, SYS_statx, SYS_lseek;
        "chunks of a map": SYS_pread64;
        "writes into memory that a process before it has died over": SYS_pwrite64;
        "waiting": SYS_eventfd2, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_ppoll;
        "in-flight regions": SYS_ftruncate;
        "I/O": SYS_io_uring_enter;
        "memory": SYS_munmap, SYS_mremap, SYS_madvise, SYS_brk;
        "keys are never swapped out": SYS_mlock, SYS_mlock2, SYS_munlock;
        "threads": SYS_futex, SYS_set_robust_list, SYS_rseq, SYS_sched_yield, SYS_sched_getaffinity, SYS_gettid,
            SYS_getpid, SYS_exit, SYS_exit_group;
        "signals that end the process in order": SYS_sigaltstack, SYS_rt_sigaction, SYS_rt_sigprocmask,
            SYS_rt_sigreturn, SYS_restart_syscall;
        "time": SYS_clock_gettime, SYS_clock_nanosleep, SYS_nanosleep;
        "random tweaks and hash seeds": SYS_getrandom;
    };
    #[cfg(target_arch = "x86_64")]
    calls.extend(listed! { "waiting, by older names": SYS_epoll_wait, SYS_poll; });
    calls.extend(by_argument());
    calls
}

/// What it may call with some arguments only.
fn by_argument() -> Vec<Call> {
    vec![
        of(
            "fcntl",
            libc::SYS_fcntl,
            "duplicates of descriptors; seals of in-flight regions",
        )
        .only(Only::OneOf(
            1,
            named!(
                F_DUPFD_CLOEXEC,
                F_GETFD,
                F_SETFD,
                F_GETFL,
                F_ADD_SEALS,
                F_GET_SEALS
            ),
        )),
        of("ioctl", libc::SYS_ioctl, "a connection that waits")
            .only(Only::OneOf(1, vec![("FIONBIO", libc::FIONBIO as u32)])),
        of("prctl", libc::SYS_prctl, "names of threads").only(Only::OneOf(0, named!(PR_SET_NAME))),
        of(
            "mmap",
            libc::SYS_mmap,
            "buffers, stacks, maps, guest memory; never code",
        )
        .only(Only::Within(2, named!(PROT_READ, PROT_WRITE)))
        .only(Only::Within(3, mappings())),
        of(
            "mprotect",
            libc::SYS_mprotect,
            "guard pages of stacks; never code",
        )
        .only(Only::Within(2, named!(PROT_READ, PROT_WRITE))),
        of("memfd_create", libc::SYS_memfd_create, "in-flight regions")
            .only(Only::Within(1, named!(MFD_CLOEXEC, MFD_ALLOW_SEALING))),
        of(
            "fallocate",
            libc::SYS_fallocate,
            "memory of the runtime map, which keeps its length",
        )
        .only(Only::OneOf(1, named!(FALLOC_FL_KEEP_SIZE))),
        of(
            "sched_setaffinity",
            libc::SYS_sched_setaffinity,
            "each queue on a CPU of its own; of the calling thread only",
        )
        .only(Only::OneOf(0, vec![("the calling thread", 0)])),
        of(
            "clone",
            libc::SYS_clone,
            "threads; neither a process nor a namespace",
        )
        .only(Only::With(0, named!(CLONE_THREAD)))
        .only(Only::Without(0, namespaces())),
        of(
            "tgkill",
            libc::SYS_tgkill,
            "it ends itself when it is broken",
        )
        .only(Only::Oneself(0)),
        of(
            "io_uring_register",
            libc::SYS_io_uring_register,
            "files, buffers and eventfds of rings",
        )
        .only(Only::OneOf(1, registrations())),
    ]
}

fn of(name: &'static str, number: i64, why: &'static str) -> Call {
    Call {
        number,
        name,
        only: Vec::new(),
        why,
    }
}

/// Flags of a mapping: none that replaces another one, or is at an address that the caller chooses.
fn mappings() -> Vec<(&'static str, u32)> {
    named!(
        MAP_SHARED,
        MAP_PRIVATE,
        MAP_ANONYMOUS,
        MAP_NORESERVE,
        MAP_POPULATE,
        MAP_STACK,
        MAP_HUGETLB
    )
}

fn namespaces() -> Vec<(&'static str, u32)> {
    named!(
        CLONE_NEWNS,
        CLONE_NEWUSER,
        CLONE_NEWPID,
        CLONE_NEWNET,
        CLONE_NEWIPC,
        CLONE_NEWUTS,
        CLONE_NEWCGROUP
    )
}

/// What may be changed of any ring.
fn registrations() -> Vec<(&'static str, u32)> {
    [ENABLE_RINGS]
        .iter()
        .chain(RING_REGISTRATIONS)
        .chain(SIGNAL_REGISTRATIONS)
        .map(|rule| (rule.name, u32::from(rule.code)))
        .collect()
}
