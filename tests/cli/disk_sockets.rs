//! Who can connect to an attached disk, and where its socket is.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use test_support::{Host, text};

use super::attached::{Attached, runtime_dir};

/// The permission bits of what is at `path`.
fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o777
}

/// Waits for what comes about soon after the socket is there.
fn wait_until(what: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !what() {
        assert!(Instant::now() < deadline, "it does not come about");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The control socket in a runtime directory, when the disk is served.
fn control_socket(run: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(run).unwrap().flatten();
    let mut paths = entries.map(|entry| entry.path());
    paths.find(|path| path.extension().is_some_and(|it| it == "control"))
}

/// Whether a process of the user and the group nobody can connect.
fn nobody_connects(socket: &Path) -> bool {
    let script = "use Socket; socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die;
        connect($s, pack_sockaddr_un($ARGV[0])) or exit 1";
    Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args(["perl", "-e", script])
        .arg(socket)
        .current_dir("/")
        .status()
        .unwrap()
        .success()
}

#[test]
fn the_first_attach_of_a_host_makes_the_directory_of_its_socket() {
    let host = Host::new();
    host.ok(&["disk", "create", "d", "--size", "1M"]);
    let tmpfs = runtime_dir();
    let run = tmpfs.path().join("run/sealdisk");
    let socket = run.join("web.sock");
    let attached = Attached::start_at(&host, &run, "d", &socket, &[]);
    assert_eq!(mode(&run), 0o711);
    assert_eq!(mode(&socket), 0o600);
    wait_until(|| control_socket(&run).is_some());
    for entry in fs::read_dir(&run).unwrap().flatten() {
        assert_eq!(mode(&entry.path()), 0o600, "{:?}", entry.path());
    }
    attached.detach();
}

#[test]
fn a_vmm_of_another_user_connects_when_its_group_is_named_and_to_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("only root can be somebody else");
    }
    let host = Host::new();
    host.ok(&["disk", "create", "d", "--size", "1M"]);
    let tmpfs = runtime_dir();
    fs::set_permissions(tmpfs.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let run = tmpfs.path().join("run");
    // As an earlier version of this program left it.
    fs::create_dir(&run).unwrap();
    fs::set_permissions(&run, fs::Permissions::from_mode(0o700)).unwrap();
    let socket = run.join("web.sock");
    let attached = Attached::start_at(&host, &run, "d", &socket, &[]);
    assert!(!nobody_connects(&socket));
    attached.detach();

    for (options, wanted) in [
        (&["--socket-group", "65534"][..], 0o660),
        (&["--socket-mode", "0666"], 0o666),
        (
            &["--socket-group", "nogroup", "--socket-mode", "0620"],
            0o620,
        ),
    ] {
        let attached = Attached::start_at(&host, &run, "d", &socket, options);
        wait_until(|| control_socket(&run).is_some());
        assert_eq!((mode(&run), mode(&socket)), (0o711, wanted), "{options:?}");
        assert!(nobody_connects(&socket), "{options:?}");
        assert!(!nobody_connects(&control_socket(&run).unwrap()));
        attached.detach();
    }
    let start = |options: &[&str]| {
        let attach = ["attach", "d", "--socket-path", text(&socket)];
        host.refused(&[&attach[..], options].concat())
    };
    assert!(start(&["--socket-group", "there is none"]).contains("no such group"));
    assert!(start(&["--socket-mode", "rw"]).contains("octal"));
}
