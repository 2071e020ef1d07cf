//! What a guest has that took the data plane over.

use std::fs;
use std::path::{Path, PathBuf};

use super::Victim;

/// A field of `/proc/PID/status`.
fn status_field(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value
        .unwrap_or_else(|| panic!("{name} in {status}"))
        .trim()
        .to_owned()
}

/// The files, not sockets and the like, that a process has open.
fn open_files(pid: u32) -> Vec<PathBuf> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = fds.map(|fd| fs::read_link(fd.unwrap().path()).unwrap());
    targets.filter(|target| target.is_absolute()).collect()
}

#[test]
fn the_data_plane_is_confined() {
    let victim = Victim::new();
    let _frontend = victim.connect();
    assert_eq!(status_field(victim.data_plane, "Seccomp:"), "2", "a filter");
    assert_eq!(status_field(victim.data_plane, "NoNewPrivs:"), "1");
    if !rustix::process::geteuid().is_root() {
        eprintln!("not tested: only root may see the files and the namespaces of these processes");
        return;
    }
    let namespace = |pid| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_ne!(namespace(victim.data_plane), namespace(victim.pid));
    let files = open_files(victim.data_plane);
    assert!(files.iter().any(|file| is_of_the_disk(file)), "{files:?}");
    let foreign: Vec<_> = files
        .iter()
        .filter(|file| !is_of_the_disk(file) && !is_of_the_process(file))
        .collect();
    assert!(foreign.is_empty(), "the data plane has {foreign:?}");
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
    let memory = ["/memfd:guest-memory", "/memfd:sealdisk-inflight"];
    name == "/dev/null"
        || name.ends_with("/stderr")
        || memory.iter().any(|memory| name.starts_with(memory))
}
