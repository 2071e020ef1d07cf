//! Code of an attacker in the data plane: each thing that a process could do to the host, done by the confined process
//! itself, in its own threads.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, geteuid, pidfd_getfd, pidfd_open};
use test_support::captive::{Captive, Entry, ForeignRing};
use test_support::{open_files, scratch, threads};

use super::Victim;
use super::confinement::ordinary_victim;

const EPERM: i64 = -(libc::EPERM as i64);
const EACCES: i64 = -(libc::EACCES as i64);
const EEXIST: i64 = -(libc::EEXIST as i64);
const EBADFD: i64 = -(libc::EBADFD as i64);

/// Tracing takes root: these tests look from outside.
fn may_trace() -> bool {
    let may = geteuid().is_root();
    if !may {
        eprintln!("not tested: only root may trace these processes");
    }
    may
}

/// Victims of an attach that is root's, and of one of an ordinary user.
fn victims() -> impl Iterator<Item = Victim> {
    let makers: [fn() -> Victim; 2] = [Victim::new, ordinary_victim];
    makers.into_iter().map(|make| make())
}

#[test]
fn no_system_call_reaches_the_host() {
    if !may_trace() {
        return;
    }
    for victim in victims() {
        let frontend = victim.connect();
        let mut captive = Captive::seize(victim.data_plane, victim.data_plane).unwrap();
        assert_eq!(captive.call(libc::SYS_getpid, &[]), 1, "it does make calls");
        for (what, number, arguments) in attempts(&mut captive, victim.pid) {
            let result = captive.call(number, &arguments);
            let expected = match number {
                libc::SYS_clone3 => -i64::from(libc::ENOSYS),
                _ => EPERM,
            };
            assert_eq!(result, expected, "{what}");
        }
        drop(captive);
        victim.assert_unharmed_after(frontend, "system calls");
    }
}

type Attempt = (&'static str, i64, Vec<u64>);

/// What an attacker would try, of which each succeeds, or fails otherwise, where it is not forbidden.
fn attempts(captive: &mut Captive, attach: u32) -> Vec<Attempt> {
    let root = captive.put(b"/\0");
    let shell = captive.put(b"/bin/sh\0");
    let empty = captive.put(&[0; 256]);
    let here = libc::AT_FDCWD as u64;
    let attach = u64::from(attach);
    let read_execute = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let fixed = anonymous | libc::MAP_FIXED as u64;
    let fork = libc::SIGCHLD as u64;
    let new_user = (libc::CLONE_NEWUSER | libc::CLONE_THREAD) as u64;
    let none = u64::MAX;
    vec![
        ("open", libc::SYS_open, vec![root, 0]),
        ("openat", libc::SYS_openat, vec![here, root, 0]),
        ("openat2", libc::SYS_openat2, vec![here, root, empty, 24]),
        (
            "open by handle",
            libc::SYS_open_by_handle_at,
            vec![here, empty, 0],
        ),
        ("stat by path", libc::SYS_stat, vec![root, empty]),
        ("make a directory", libc::SYS_mkdirat, vec![here, root, 0]),
        ("unlink", libc::SYS_unlinkat, vec![here, root, 0]),
        (
            "extended attributes",
            libc::SYS_setxattr,
            vec![root, root, root, 1, 0],
        ),
        ("mount", libc::SYS_mount, vec![root, root, root, 0, 0]),
        ("unmount", libc::SYS_umount2, vec![root, 0]),
        ("another root", libc::SYS_chroot, vec![root]),
        ("another root", libc::SYS_pivot_root, vec![root, root]),
        (
            "a Unix socket",
            libc::SYS_socket,
            vec![libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0],
        ),
        (
            "a TCP socket",
            libc::SYS_socket,
            vec![libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0],
        ),
        (
            "a socket pair",
            libc::SYS_socketpair,
            vec![libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0, empty],
        ),
        (
            "connect",
            libc::SYS_connect,
            vec![u64::from(protocol::COMMAND_FD as u32), empty, 16],
        ),
        (
            "bind",
            libc::SYS_bind,
            vec![u64::from(protocol::COMMAND_FD as u32), empty, 16],
        ),
        ("exec", libc::SYS_execve, vec![shell, 0, 0]),
        ("exec", libc::SYS_execveat, vec![here, shell, 0, 0, 0]),
        ("fork", libc::SYS_fork, vec![]),
        ("vfork", libc::SYS_vfork, vec![]),
        ("a process", libc::SYS_clone, vec![fork, 0, 0, 0, 0]),
        ("a process", libc::SYS_clone3, vec![empty, 88]),
        ("a namespace", libc::SYS_clone, vec![new_user, 0, 0, 0, 0]),
        (
            "a namespace",
            libc::SYS_unshare,
            vec![libc::CLONE_NEWUSER as u64],
        ),
        ("a namespace", libc::SYS_setns, vec![3, 0]),
        (
            "trace",
            libc::SYS_ptrace,
            vec![libc::PTRACE_TRACEME.into(), 0, 0, 0],
        ),
        (
            "trace",
            libc::SYS_ptrace,
            vec![libc::PTRACE_ATTACH.into(), attach, 0, 0],
        ),
        (
            "read memory",
            libc::SYS_process_vm_readv,
            vec![1, empty, 1, empty, 1, 0],
        ),
        ("signal all", libc::SYS_kill, vec![none, 0]),
        ("signal the attach process", libc::SYS_kill, vec![attach, 0]),
        (
            "signal the attach process",
            libc::SYS_tgkill,
            vec![attach, attach, 0],
        ),
        ("signal", libc::SYS_tkill, vec![1, 0]),
        ("signal", libc::SYS_rt_sigqueueinfo, vec![1, 10, empty]),
        ("a process's descriptor", libc::SYS_pidfd_open, vec![1, 0]),
        (
            "F_SETOWN",
            libc::SYS_fcntl,
            vec![3, libc::F_SETOWN as u64, 1],
        ),
        (
            "F_SETSIG",
            libc::SYS_fcntl,
            vec![3, 10, libc::SIGKILL as u64],
        ),
        ("F_SETOWN_EX", libc::SYS_fcntl, vec![3, 15, empty]),
        (
            "F_SETFL",
            libc::SYS_fcntl,
            vec![3, libc::F_SETFL as u64, libc::O_ASYNC as u64],
        ),
        ("FIOASYNC", libc::SYS_ioctl, vec![3, libc::FIOASYNC, empty]),
        ("TIOCSTI", libc::SYS_ioctl, vec![2, libc::TIOCSTI, empty]),
        (
            "executable memory",
            libc::SYS_mmap,
            vec![0, 4096, read_execute, anonymous, none, 0],
        ),
        (
            "memory in place of other",
            libc::SYS_mmap,
            vec![empty & !4095, 4096, 1, fixed, none, 0],
        ),
        (
            "executable memory",
            libc::SYS_mprotect,
            vec![empty & !4095, 4096, read_execute],
        ),
        (
            "executable memory",
            libc::SYS_pkey_mprotect,
            vec![empty & !4095, 4096, read_execute, none],
        ),
        (
            "an executable file",
            libc::SYS_memfd_create,
            vec![root, 0x10],
        ),
        ("a ring", libc::SYS_io_uring_setup, vec![8, empty]),
        (
            "a ring's personality",
            libc::SYS_io_uring_register,
            vec![3, 9, 0, 0],
        ),
        (
            "other restrictions",
            libc::SYS_io_uring_register,
            vec![3, 11, empty, 1],
        ),
        ("a key", libc::SYS_add_key, vec![root, root, root, 1, none]),
        ("a key", libc::SYS_keyctl, vec![0, none]),
        ("bpf", libc::SYS_bpf, vec![0, empty, 64]),
        (
            "perf",
            libc::SYS_perf_event_open,
            vec![empty, 0, none, none, 0],
        ),
        ("userfaultfd", libc::SYS_userfaultfd, vec![1]),
        ("personality", libc::SYS_personality, vec![0x0040_0000]),
        ("another user", libc::SYS_setuid, vec![0]),
        ("capabilities", libc::SYS_capset, vec![empty, empty]),
        (
            "dumpable",
            libc::SYS_prctl,
            vec![libc::PR_SET_DUMPABLE as u64, 1],
        ),
        ("another filter", libc::SYS_seccomp, vec![1, 0, empty]),
        ("the host's name", libc::SYS_sethostname, vec![root, 1]),
        ("the host's clock", libc::SYS_settimeofday, vec![empty, 0]),
        (
            "limits",
            libc::SYS_prlimit64,
            vec![0, libc::RLIMIT_NOFILE as u64, 0, empty],
        ),
        ("shared memory", libc::SYS_shmget, vec![0, 4096, 0o1600]),
    ]
}

/// In its first thread, and in one that it has started since.
#[test]
fn the_attach_process_makes_no_foreign_call_and_changes_no_foreign_file() {
    if !may_trace() {
        return;
    }
    for victim in victims() {
        for thread in [victim.pid, thread_of(victim.pid, "control-socket")] {
            let mut captive = Captive::seize(victim.pid, thread).unwrap();
            let own = u64::from(victim.pid);
            assert_eq!(captive.call(libc::SYS_getpid, &[]), own as i64);
            let empty = captive.put(&[0; 256]);
            let root = captive.put(b"/\0");
            let new_net = (libc::CLONE_NEWNET | libc::SIGCHLD) as u64;
            let refused: [Attempt; 10] = [
                ("mount", libc::SYS_mount, vec![root, root, root, 0, 0]),
                (
                    "a namespace",
                    libc::SYS_unshare,
                    vec![libc::CLONE_NEWUSER as u64],
                ),
                ("a namespace", libc::SYS_clone, vec![new_net, 0, 0, 0, 0]),
                (
                    "trace",
                    libc::SYS_ptrace,
                    vec![libc::PTRACE_ATTACH.into(), 1, 0, 0],
                ),
                ("a module", libc::SYS_init_module, vec![empty, 1, empty]),
                ("bpf", libc::SYS_bpf, vec![0, empty, 64]),
                ("a key", libc::SYS_keyctl, vec![0, u64::MAX]),
                ("another user", libc::SYS_setuid, vec![1]),
                ("another root", libc::SYS_chroot, vec![root]),
                ("reboot", libc::SYS_reboot, vec![0, 0, 0, 0]),
            ];
            for (what, number, arguments) in refused {
                assert_eq!(captive.call(number, &arguments), EPERM, "{what}");
            }
            let make = (libc::O_WRONLY | libc::O_CREAT) as u64;
            let foreign = scratch().join(format!("foreign-{thread}"));
            let own = victim.disk.state().join(format!("own-{thread}"));
            for (path, expected) in [(&foreign, EACCES), (&own, 0)] {
                let at = captive.put(&[path.to_str().unwrap().as_bytes(), b"\0"].concat());
                let opened = captive.call(libc::SYS_open, &[at, make, 0o600]);
                if expected == 0 {
                    assert!(opened > 2, "{path:?}: {opened}");
                    captive.call(libc::SYS_close, &[opened as u64]);
                } else {
                    assert_eq!(opened, expected, "{path:?}");
                }
            }
        }
        victim.assert_unharmed("system calls of the attach process");
    }
}

fn thread_of(process: u32, name: &str) -> u32 {
    let all = threads(process);
    let found = all.iter().find(|(_, its)| its == name);
    found.unwrap_or_else(|| panic!("no {name} in {all:?}")).0
}

/// Operations that no ring is for.
const OPERATIONS: [(&str, u8); 18] = [
    ("SENDMSG", 9),
    ("RECVMSG", 10),
    ("ACCEPT", 13),
    ("CONNECT", 16),
    ("OPENAT", 18),
    ("CLOSE", 19),
    ("FILES_UPDATE", 20),
    ("STATX", 21),
    ("OPENAT2", 28),
    ("EPOLL_CTL", 29),
    ("SPLICE", 30),
    ("RENAMEAT", 35),
    ("UNLINKAT", 36),
    ("MSG_RING", 40),
    ("FSETXATTR", 41),
    ("SETXATTR", 42),
    ("SOCKET", 45),
    ("URING_CMD", 46),
];
/// `IORING_OP_NOP`, `IORING_OP_READ` and `IOSQE_FIXED_FILE`.
const NOP: u8 = 0;
const READ: u8 = 22;
const FIXED_FILE: u8 = 1;

#[test]
fn no_ring_does_what_the_path_of_a_request_does_not_need() {
    if !may_trace() {
        return;
    }
    for victim in victims() {
        let frontend = victim.connect();
        let rings = rings_of(victim.data_plane);
        assert!(rings.len() > 8, "{} rings", rings.len());
        let (mut of_queues, mut others) = (0, 0);
        for ring in &rings {
            let mut captive = owner(victim.data_plane, ring);
            for (name, code) in OPERATIONS {
                for flags in [0, FIXED_FILE] {
                    let entry = Entry { code, flags, fd: 3 };
                    let result = ring.submit(&mut captive, &entry);
                    assert_eq!(
                        result, EACCES,
                        "{name} with flags {flags} on {}",
                        ring.number
                    );
                }
            }
            let nothing = |flags| Entry {
                code: NOP,
                flags,
                fd: 0,
            };
            // What is restricted is this ring, and not all that is done to it.
            match ring.submit(&mut captive, &nothing(FIXED_FILE)) {
                0 => {
                    let unregistered = Entry {
                        code: READ,
                        flags: 0,
                        fd: 3,
                    };
                    assert_eq!(ring.submit(&mut captive, &unregistered), EACCES);
                    of_queues += 1;
                }
                result => {
                    assert_eq!(result, EACCES);
                    assert_eq!(ring.submit(&mut captive, &nothing(0)), 0);
                    others += 1;
                }
            }
        }
        assert!(of_queues > 4 && others > 4, "{of_queues}, {others}");
        victim.assert_unharmed_after(frontend, "foreign operations");
    }
}

/// The rings that a process has.
fn rings_of(process: u32) -> Vec<ForeignRing> {
    let pid = Pid::from_raw(process.cast_signed()).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let is_ring = |target: &Path| target.to_string_lossy().contains("[io_uring]");
    let numbers = open_files(process)
        .into_iter()
        .filter_map(|(number, target)| is_ring(&target).then_some(number));
    let ring = |number: u32| {
        let fd: OwnedFd = pidfd_getfd(&pidfd, number as i32, PidfdGetfdFlags::empty()).unwrap();
        ForeignRing::map(number.into(), &File::from(fd), sq_entries(process, number))
    };
    numbers.map(ring).collect()
}

/// The size of a ring's submission queue, of which fdinfo has the mask.
fn sq_entries(process: u32, number: u32) -> u32 {
    let info = fs::read_to_string(format!("/proc/{process}/fdinfo/{number}")).unwrap();
    let mask = info.lines().find_map(|line| line.strip_prefix("SqMask:"));
    let mask = mask.unwrap_or_else(|| panic!("{info}")).trim();
    u32::from_str_radix(mask.trim_start_matches("0x"), 16).unwrap() + 1
}

/// The thread that a ring takes orders from; one that is not used yet is put to use.
fn owner(process: u32, ring: &ForeignRing) -> Captive {
    const ENABLE: u64 = 12;
    const MAX_WORKERS: u64 = 19;
    for (thread, name) in threads(process) {
        if name.starts_with("iou-") {
            continue;
        }
        let mut captive = Captive::seize(process, thread).unwrap();
        let enter = [ring.number, 0, 0, 0, 0, 0];
        if captive.call(libc::SYS_io_uring_enter, &enter) == EBADFD {
            let enable = [ring.number, ENABLE, 0, 0];
            assert_eq!(captive.call(libc::SYS_io_uring_register, &enable), 0);
        }
        // It changes nothing, and is refused if the ring belongs to another thread.
        let nothing = captive.put(&[0; 8]);
        let ask = [ring.number, MAX_WORKERS, nothing, 2];
        match captive.call(libc::SYS_io_uring_register, &ask) {
            EEXIST => {}
            result => {
                assert!(result == 0 || result == EACCES, "{result}");
                return captive;
            }
        }
    }
    panic!("nobody owns the ring {}", ring.number);
}
