//! Each measure by itself: what it keeps from a process that has nothing else of a confinement.
//!
//! A measure cannot be taken back, so each test runs itself again as a child, which applies it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, File};
use std::io::Error;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::Command;

use rustix::process::{Resource, geteuid};
use rustix::thread::{CapabilitySet, capabilities, capability_is_in_bounding_set};

use sandbox::calls::{Call, Only, allow, refuse};
use sandbox::landlock::{Keeps, Use, restrict};
use sandbox::{Missing, Privileges, Sandbox, User, drop_to, limit, named};

const CHILD: &str = "SEALDISK_TEST_CHILD";

/// Runs a test again as a child, in which `f` runs.
fn in_child(test: &str, f: impl FnOnce()) {
    if std::env::var(CHILD).as_deref() == Ok(test) {
        return f();
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, test)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{}: {said}", child.status);
}

/// In a thread of its own, so that the harness is as it was.
fn apart(f: impl FnOnce() + Send + 'static) {
    std::thread::spawn(f).join().unwrap();
}

fn nothing_missing(missing: Missing) {
    missing.settle(Sandbox::Strict, "test").unwrap();
}

fn errno_of(result: std::io::Result<impl Sized>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn landlock_keeps_paths_away_that_no_rule_names() {
    in_child("landlock_keeps_paths_away_that_no_rule_names", || {
        let directory = tempfile::tempdir().unwrap();
        let (mine, other) = (
            directory.path().join("mine"),
            directory.path().join("other"),
        );
        fs::create_dir(&mine).unwrap();
        fs::write(&other, "secret").unwrap();
        apart(move || {
            let mut missing = Missing::default();
            restrict(Keeps::Files, [(mine.as_path(), Use::Change)], &mut missing);
            nothing_missing(missing);
            fs::write(mine.join("file"), "x").unwrap();
            assert_eq!(errno_of(File::open(&other)), Some(libc::EACCES));
            assert_eq!(errno_of(fs::remove_file(&other)), Some(libc::EACCES));
            assert_eq!(
                errno_of(Command::new("/bin/true").status()),
                Some(libc::EACCES)
            );
        });
    });
}

#[test]
fn landlock_keeps_everything_away_when_nothing_is_named() {
    in_child(
        "landlock_keeps_everything_away_when_nothing_is_named",
        || {
            let name = format!("sealdisk-test-{}", std::process::id());
            let address = SocketAddr::from_abstract_name(name).unwrap();
            let _listener = UnixListener::bind_addr(&address).unwrap();
            apart(move || {
                let mut missing = Missing::default();
                restrict(Keeps::All, [], &mut missing);
                nothing_missing(missing);
                assert_eq!(errno_of(File::open("/")), Some(libc::EACCES));
                let tcp = std::net::TcpStream::connect("127.0.0.1:1");
                assert_eq!(errno_of(tcp), Some(libc::EACCES));
                assert_eq!(
                    errno_of(UnixStream::connect_addr(&address)),
                    Some(libc::EPERM)
                );
            });
        },
    );
}

fn call(number: i64, name: &'static str) -> Call {
    Call {
        number,
        name,
        only: Vec::new(),
        why: "a test",
    }
}

#[test]
fn calls_that_are_not_listed_fail_and_arguments_count() {
    in_child("calls_that_are_not_listed_fail_and_arguments_count", || {
        apart(|| {
            let ended = [
                libc::SYS_exit,
                libc::SYS_exit_group,
                libc::SYS_write,
                libc::SYS_futex,
                libc::SYS_munmap,
                libc::SYS_madvise,
                libc::SYS_sigaltstack,
                libc::SYS_rt_sigprocmask,
                libc::SYS_brk,
            ];
            let mut listed: Vec<_> = ended.into_iter().map(|n| call(n, "end")).collect();
            listed.push(
                call(libc::SYS_fcntl, "fcntl").only(Only::OneOf(1, named!(F_GETFD, F_GETFL))),
            );
            listed.push(
                call(libc::SYS_mmap, "mmap")
                    .only(Only::Within(2, named!(PROT_READ, PROT_WRITE)))
                    .only(Only::Without(3, named!(MAP_FIXED))),
            );
            listed.push(call(libc::SYS_tgkill, "tgkill").only(Only::Oneself(0)));
            let own = u64::from(std::process::id());
            allow(&listed).unwrap();
            let result = |number, arguments: [u64; 4]| {
                let [a, b, c, d] = arguments;
                // SAFETY: these calls are refused, or change nothing.
                match unsafe { libc::syscall(number, a, b, c, d, -1, 0) } {
                    -1 => Error::last_os_error().raw_os_error().unwrap(),
                    _ => 0,
                }
            };
            let (read, exec) = (libc::PROT_READ as u64, libc::PROT_EXEC as u64);
            let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
            let fixed = anonymous | libc::MAP_FIXED as u64;
            let expected = [
                (result(libc::SYS_getpid, [0; 4]), libc::EPERM),
                (result(libc::SYS_clone3, [0; 4]), libc::ENOSYS),
                (result(libc::SYS_fcntl, [0, libc::F_GETFD as u64, 0, 0]), 0),
                (
                    result(libc::SYS_fcntl, [0, libc::F_SETOWN as u64, 1, 0]),
                    libc::EPERM,
                ),
                (result(libc::SYS_mmap, [0, 4096, read, anonymous]), 0),
                (
                    result(libc::SYS_mmap, [0, 4096, read | exec, anonymous]),
                    libc::EPERM,
                ),
                (
                    result(libc::SYS_mmap, [1 << 40, 4096, read, fixed]),
                    libc::EPERM,
                ),
                (result(libc::SYS_tgkill, [1, 1, 0, 0]), libc::EPERM),
                (
                    result(libc::SYS_tgkill, [own, u64::MAX, 0, 0]),
                    libc::EINVAL,
                ),
            ];
            for (n, (result, expected)) in expected.into_iter().enumerate() {
                assert_eq!(result, expected, "call {n}");
            }
        });
    });
}

#[test]
fn calls_that_are_refused_fail_in_all_threads() {
    in_child("calls_that_are_refused_fail_in_all_threads", || {
        let (go, told) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            told.recv().unwrap();
            // SAFETY: a call without an effect.
            let result = unsafe { libc::syscall(libc::SYS_getppid) };
            assert_eq!(result, -1);
        });
        let threads = named!(CLONE_NEWUSER, CLONE_NEWNET);
        refuse(&[
            call(libc::SYS_getppid, "getppid"),
            call(libc::SYS_clone, "clone").only(Only::WithAny(0, threads)),
        ])
        .unwrap();
        go.send(()).unwrap();
        other.join().unwrap();
        // Threads and processes can still be started.
        apart(|| ());
        assert!(Command::new("/bin/true").status().unwrap().success());
        let flags = libc::CLONE_NEWNET | libc::CLONE_NEWPID | libc::SIGCHLD;
        // SAFETY: it is refused.
        let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        assert_eq!(result, -1);
    });
}

#[test]
fn privileges_are_given_up_and_cannot_be_had_again() {
    if !geteuid().is_root() {
        return;
    }
    in_child("privileges_are_given_up_and_cannot_be_had_again", || {
        apart(|| {
            let mut missing = Missing::default();
            let user = Some(User {
                uid: 0x7000_0000,
                gid: 7,
            });
            Privileges { user }.give_up(&mut missing);
            nothing_missing(missing);
            assert_eq!(geteuid().as_raw(), 0x7000_0000);
            let sets = capabilities(None).unwrap();
            let all = sets.effective | sets.permitted | sets.inheritable;
            assert!(all.is_empty(), "{all:?}");
            assert_eq!(
                capability_is_in_bounding_set(CapabilitySet::CHOWN),
                Ok(false)
            );
            assert_eq!(rustix::thread::no_new_privs(), Ok(true));
            let root = rustix::process::Uid::ROOT;
            assert!(rustix::thread::set_thread_uid(root).is_err());
        });
        apart(|| {
            drop_to(CapabilitySet::CHOWN).unwrap();
            assert_eq!(capabilities(None).unwrap().effective, CapabilitySet::CHOWN);
            assert_eq!(
                capability_is_in_bounding_set(CapabilitySet::CHOWN),
                Ok(true)
            );
            assert_eq!(
                capability_is_in_bounding_set(CapabilitySet::KILL),
                Ok(false)
            );
        });
    });
}

#[test]
fn limits_only_go_down() {
    in_child("limits_only_go_down", || {
        limit(Resource::Nofile, 100).unwrap();
        limit(Resource::Nofile, 200).unwrap();
        assert_eq!(
            rustix::process::getrlimit(Resource::Nofile).maximum,
            Some(100)
        );
    });
}
