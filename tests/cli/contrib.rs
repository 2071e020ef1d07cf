//! Scripts of `contrib` that are not part of the program.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use test_support::{program, scratch};

/// A script of `contrib` with the program under test on its path.
fn script(name: &str) -> Command {
    let folder = program().parent().expect("the program is in a folder");
    let path = std::env::var("PATH").unwrap_or_default();
    let contrib = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib");
    let mut command = Command::new(contrib.join(name));
    command
        .env("PATH", format!("{}:{path}", folder.display()))
        .env("TMPDIR", scratch())
        .stdin(Stdio::null());
    command
}

fn with_encrypted_disk(command: &str) -> Output {
    script("ci/with-encrypted-disk")
        .args(["--size", "1MiB", "--", "sh", "-c", command])
        .output()
        .expect("the script can be started")
}

#[test]
fn a_throw_away_disk_is_gone_when_its_command_has_ended() {
    let output =
        with_encrypted_disk("echo $SEALDISK_SOCKET; test -S $SEALDISK_SOCKET && exit 7; exit 1");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{text}\n{errors}");
    let keys = Path::new(text.trim()).parent().expect("a folder");
    assert!(keys.starts_with("/dev/shm"), "{text}");
    assert!(!keys.exists(), "{text}");
}

#[test]
fn the_hook_of_proxmox_starts_no_guest_without_a_disk() {
    let empty = tempfile::tempdir().expect("a temporary directory");
    let output = script("proxmox/sealdisk-hook")
        .args(["100", "pre-start"])
        .env("SEALDISK_STATE_DIR", empty.path())
        .output()
        .expect("the script can be started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{errors}");
    assert!(errors.contains("vm-100-disk-0"), "{errors}");
}

/// SQLite gives its files to the owner of the database where it runs as root, and goes on where it may not: a unit without
/// a number would be killed for that, at each start again.
#[test]
fn no_unit_is_killed_for_a_system_call_that_it_may_not_make() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd");
    let mut filtered = 0;
    for unit in std::fs::read_dir(units).unwrap() {
        let path = unit.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let has = |key: &str| text.lines().any(|line| line.starts_with(key));
        if has("SystemCallFilter=") {
            filtered += 1;
            assert!(has("SystemCallErrorNumber=EPERM"), "{}", path.display());
        }
    }
    assert!(filtered > 5, "{filtered}");
}

/// A disk that one of them attaches, and another looks at, is to be of the same host for both.
#[test]
fn all_units_know_the_name_of_the_host() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd");
    for unit in std::fs::read_dir(units).unwrap() {
        let path = unit.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut files = text
            .lines()
            .filter(|line| line.starts_with("EnvironmentFile="));
        if text.contains("/usr/bin/sealdisk") {
            let last = files.next_back().unwrap_or_default();
            let host = "EnvironmentFile=-/etc/default/sealdisk-host";
            assert_eq!(last, host, "{}", path.display());
        }
    }
}
