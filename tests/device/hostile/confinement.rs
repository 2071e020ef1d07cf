//! What a guest has that took the data plane over, seen from outside.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::geteuid;
use test_support::{
    AttachOptions, Disk, children, data_plane_of, expect_success, open_files, threads,
};

use super::{MIB, Victim};

/// An ordinary user of this host, without rights.
const NOBODY: u32 = 65534;

/// The victim of an attach that is not root's.
pub(super) fn ordinary_victim() -> Victim {
    let mut disk = Disk::new(16 * MIB);
    disk.give_to(NOBODY);
    Victim::of(disk, &AttachOptions::default())
}

/// A field of `/proc/PID/status`.
fn status_field(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value
        .unwrap_or_else(|| panic!("{name} in {status}"))
        .trim()
        .to_owned()
}

/// A victim of this test's own user, and, where that is root, of another one.
fn victims() -> Vec<Victim> {
    let mut victims = vec![Victim::new()];
    if geteuid().is_root() {
        victims.push(ordinary_victim());
    }
    victims
}

#[test]
fn the_data_plane_is_confined() {
    for victim in victims() {
        let _frontend = victim.connect();
        let data_plane = victim.data_plane;
        assert_eq!(status_field(data_plane, "Seccomp:"), "2", "a filter");
        assert_eq!(status_field(data_plane, "NoNewPrivs:"), "1");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            let set_of = status_field(data_plane, set);
            assert_eq!(set_of.trim_start_matches('0'), "", "{set} {set_of}");
        }
        let first_of_its_own = status_field(data_plane, "NSpid:");
        assert!(first_of_its_own.ends_with("\t1"), "{first_of_its_own}");
        if !geteuid().is_root() {
            eprintln!(
                "not tested: only root may see the files and the namespaces of these processes"
            );
            return;
        }
        for kind in ["net", "mnt", "pid", "ipc", "uts"] {
            let namespace = |pid| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
            assert_ne!(namespace(data_plane), namespace(victim.pid), "{kind}");
        }
        let in_its_root = fs::read_dir(format!("/proc/{data_plane}/root")).unwrap();
        assert_eq!(in_its_root.count(), 0, "its root directory is empty");
        let mounts = fs::read_to_string(format!("/proc/{data_plane}/mountinfo")).unwrap();
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        // Sockets and the like have no path.
        let files: Vec<_> = open_files(data_plane)
            .into_iter()
            .filter_map(|(_, target)| target.is_absolute().then_some(target))
            .collect();
        assert!(files.iter().any(|file| is_of_the_disk(file)), "{files:?}");
        let foreign: Vec<_> = files
            .iter()
            .filter(|file| !is_of_the_disk(file) && !is_of_the_process(file))
            .collect();
        assert!(foreign.is_empty(), "the data plane has {foreign:?}");
    }
}

/// A set of capabilities of a thread, as a number.
fn capabilities_of(status: &str, set: &str) -> u64 {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(set))
        .unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

#[test]
fn the_attach_process_and_the_launcher_are_confined() {
    // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, KILL, IPC_LOCK, SYS_RESOURCE.
    const OF_ATTACH: u64 = 0b1111 | 1 << 5 | 1 << 14 | 1 << 24;
    // KILL, SETGID, SETUID, SETPCAP, IPC_LOCK, SYS_PTRACE, SYS_ADMIN, SYS_RESOURCE.
    const OF_LAUNCHER: u64 =
        1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 14 | 1 << 19 | 1 << 21 | 1 << 24;
    for victim in victims() {
        let launcher = children(victim.pid)[0];
        for (process, kept) in [(victim.pid, OF_ATTACH), (launcher, OF_LAUNCHER)] {
            let status =
                |(task, _)| fs::read_to_string(format!("/proc/{process}/task/{task}/status")).ok();
            let all: Vec<_> = threads(process).into_iter().filter_map(status).collect();
            assert!(!all.is_empty(), "no thread of {process} was looked at");
            for status in all {
                for set in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
                    let had = capabilities_of(&status, set);
                    assert_eq!(had & !kept, 0, "{set} {had:x}: {status}");
                }
                if geteuid().is_root() && user_of(process) == 0 {
                    assert_eq!(capabilities_of(&status, "CapBnd:") & !kept, 0, "{status}");
                }
                assert!(status.contains("NoNewPrivs:\t1"), "{status}");
                let filtered = status.contains("Seccomp:\t2");
                assert_eq!(filtered, process == victim.pid, "{status}");
            }
        }
    }
}

#[test]
fn snapshots_of_an_attached_disk_are_made_where_its_attach_may_make_them() {
    let disk = Disk::new(16 * MIB);
    let elsewhere = tempfile::TempDir::new_in(test_support::scratch()).unwrap();
    let place = elsewhere.path().to_str().unwrap().to_owned();
    let create = |name: &str| {
        let words = [
            "snapshot",
            "create",
            name,
            "--source",
            "disk",
            "--data-dir",
            &place,
        ];
        disk.command(&words).output().unwrap()
    };
    let daemon = disk.attach(&AttachOptions::default());
    let refused = create("first");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("--allow-data-dir"),
        "{said}"
    );
    daemon.connect().queues[0].assert_serves(0, 1);
    daemon.stop();
    let allowed: &'static str = place.clone().leak();
    let daemon = disk.attach(&AttachOptions {
        arguments: Box::leak(Box::new(["--allow-data-dir", allowed])),
        ..Default::default()
    });
    let made = create("second");
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{said}");
    daemon.stop();
}

/// The four user ids of a process, which are one.
fn user_of(pid: u32) -> u32 {
    let ids = status_field(pid, "Uid:");
    let ids: Vec<u32> = ids
        .split_whitespace()
        .map(|id| id.parse().unwrap())
        .collect();
    assert_eq!(ids, [ids[0]; 4]);
    ids[0]
}

#[test]
fn two_data_planes_of_root_are_two_users_and_neither_is_root() {
    if !geteuid().is_root() {
        eprintln!("not tested: only root can become another user");
        return;
    }
    let victims = [Victim::new(), Victim::new()];
    let [first, second] = victims.each_ref().map(|victim| user_of(victim.data_plane));
    assert!(
        first != 0 && second != 0 && first != second,
        "{first}, {second}"
    );
    for victim in &victims {
        assert_eq!(status_field(victim.data_plane, "Groups:"), "");
        assert_ne!(
            status_field(victim.data_plane, "Gid:").split('\t').next(),
            Some("0")
        );
    }
}

#[test]
fn a_data_plane_runs_as_the_user_that_was_named() {
    if !geteuid().is_root() {
        eprintln!("not tested: only root can become another user");
        return;
    }
    let options = AttachOptions {
        arguments: &["--user", "nobody"],
        ..Default::default()
    };
    let victim = Victim::of(Disk::new(16 * MIB), &options);
    assert_eq!(user_of(victim.data_plane), NOBODY);
    victim.assert_unharmed("nothing");
    for (user, why) in [("0", "runs as root"), ("no-such-user", "no such user")] {
        let arguments = [
            "attach",
            "disk",
            "--socket-path",
            "/dev/shm/never",
            "--user",
            user,
        ];
        let refused = Disk::new(MIB).command(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(why), "{said}");
    }
}

/// A root without the privileges that it takes: as in a container.
fn without_privileges(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    const CAP_SYS_ADMIN: libc::c_int = 21;
    let limit = || {
        // SAFETY: system calls on plain values.
        unsafe {
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0);
        }
        Ok(())
    };
    // SAFETY: one system call.
    unsafe { command.pre_exec(limit) };
    let namespaces = [libc::SYS_clone, libc::SYS_unshare];
    for call in namespaces {
        test_support::seccomp::forbid_bits(
            command,
            call,
            0,
            libc::CLONE_NEWUSER as u32,
            libc::EPERM,
        );
    }
}

#[test]
fn what_cannot_be_had_is_named_and_refused_unless_less_is_enough() {
    if !geteuid().is_root() {
        eprintln!("not tested: what an ordinary user can have differs from host to host");
        return;
    }
    let disk = Disk::new(16 * MIB);
    let named = [
        "mount namespace",
        "PID namespace",
        "network namespace",
        "Operation not permitted",
    ];
    let socket = disk.runtime().join("socket");
    for sandbox in [&[][..], &["--sandbox", "strict"]] {
        let mut command = disk.command(&["attach", "disk", "--socket-path"]);
        command.arg(&socket).args(sandbox);
        without_privileges(&mut command);
        let refused = command.output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && !socket.exists(), "{said}");
        let errors: Vec<_> = said
            .lines()
            .filter(|line| line.starts_with("error"))
            .collect();
        assert_eq!(errors.len(), 1, "{said}");
        for named in named.iter().chain(&["--sandbox best-effort"]) {
            assert!(errors[0].contains(named), "{named}: {said}");
        }
    }
    let mut command = disk.command(&[
        "attach",
        "disk",
        "--sandbox",
        "best-effort",
        "--socket-path",
    ]);
    command.arg(&socket);
    without_privileges(&mut command);
    let log = disk.runtime().join("stderr");
    let daemon = test_support::Daemon::start(command, socket, log);
    daemon.connect().queues[0].assert_serves(0, 1);
    let said = daemon.log();
    for named in named {
        assert!(said.contains(named), "{named}: {said}");
    }
    let data_plane = data_plane_of(daemon.pid()).unwrap();
    assert_ne!(user_of(data_plane), 0, "what can be had is");
    assert_eq!(status_field(data_plane, "Seccomp:"), "2");
}

/// What is printed is what holds, in both forms.
#[test]
fn what_is_allowed_is_printed_with_its_reasons() {
    let disk = Disk::new(MIB);
    let json =
        expect_success(&mut disk.command(&["attach", "--print-sandbox", "-o", "json"])).stdout;
    let rules: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let rules = rules.as_array().unwrap();
    let table = expect_success(&mut disk.command(&["attach", "--print-sandbox"])).stdout;
    let table = String::from_utf8(table).unwrap();
    for rule in rules {
        for field in ["process", "by", "what", "allowed", "why"] {
            let text = rule[field].as_str().unwrap();
            assert!(
                !text.is_empty() && table.contains(text),
                "{field} of {rule}"
            );
        }
    }
    let allowed = |what: &str| {
        let mut all = rules.iter().filter(|rule| rule["process"] == "data plane");
        all.find(|rule| rule["what"] == what)
            .map(|rule| rule["allowed"].as_str().unwrap())
    };
    assert_eq!(
        allowed("mmap").map(|only| only.contains("PROT_EXEC")),
        Some(false)
    );
    assert_eq!(
        allowed("fcntl").map(|only| only.contains("F_SETOWN")),
        Some(false)
    );
    assert_eq!(allowed("io_uring_setup"), None);
    assert_eq!(
        allowed("IORING_OP_WRITE_FIXED"),
        Some("on registered files")
    );
    assert_eq!(allowed("PID namespace"), Some("its own"));
}

/// A layer's ciphertext, its map, or the runtime map. Neither the header nor any database.
fn is_of_the_disk(file: &Path) -> bool {
    matches!(
        file.extension().and_then(|name| name.to_str()),
        Some("data" | "map")
    )
}

/// Standard streams, which the test connects to a file, the memory that the frontend has sent, and what says
/// which requests are in flight.
fn is_of_the_process(file: &Path) -> bool {
    let name = file.to_string_lossy();
    let memory = [
        "/memfd:guest-memory",
        "/memfd:sealdisk-inflight",
        "/memfd:sealdisk-kept",
        "/memfd:sealdisk-no-",
    ];
    name == "/dev/null"
        || name.ends_with("/stderr")
        || memory.iter().any(|memory| name.starts_with(memory))
}
