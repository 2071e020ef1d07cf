//! `sealdisk doctor`, and the forms of the log.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use test_support::{Host, KEY, VAULT, program, text};

use super::attached::{Attached, runtime_dir};

fn doctor(host: &Host, runtime: &str) -> (Output, Vec<Value>) {
    let output = host.run(&format!("doctor -o json --runtime-dir {runtime}"));
    let checks = serde_json::from_slice(&output.stdout).unwrap();
    (output, checks)
}

fn status<'a>(checks: &'a [Value], name: &str) -> Vec<&'a str> {
    let named = checks.iter().filter(|check| check["check"] == name);
    named
        .map(|check| check["status"].as_str().unwrap())
        .collect()
}

#[test]
fn each_part_of_the_host_is_looked_at_and_nothing_is_made() {
    let host = Host::new();
    let runtime = runtime_dir();
    let dir = runtime.path().join("not-there-yet");
    let (_, checks) = doctor(&host, dir.to_str().unwrap());
    for name in [
        "kernel",
        "cipher",
        "io_uring",
        "locked memory",
        "memory",
        "sandbox",
        "runtime directory",
        "state directory",
        "disks",
        "clock",
        "vault",
        "qemu-utils",
        "vmm",
        "vhost-user descriptor",
    ] {
        assert!(!status(&checks, name).is_empty(), "{name} in {checks:?}");
    }
    for check in &checks {
        let is_ok = check["status"] == "ok";
        assert_eq!(check["advice"].is_null(), is_ok, "{check}");
        assert!(!check["found"].as_str().unwrap().is_empty(), "{check}");
    }
    // The tests run here, so a disk can be served.
    for name in ["kernel", "io_uring", "runtime directory", "memory"] {
        assert_eq!(status(&checks, name), ["ok"], "{checks:?}");
    }
    assert!(
        !dir.exists() && !host.state().exists(),
        "something was made"
    );
}

#[test]
fn what_fails_decides_the_exit_status_and_says_what_to_do() {
    let host = Host::new();
    let runtime = runtime_dir();
    let at = runtime.path().to_str().unwrap();
    host.encryption_set("set1", &["get", "wrapKey", "unwrapKey"]);
    host.ok("disk create d --size 1MiB --disk-encryption-set set1");
    let (_, checks) = doctor(&host, at);
    assert_eq!(status(&checks, "disk encryption set"), ["ok"]);
    assert!(
        status(&checks, "vault")
            .iter()
            .all(|status| *status == "ok")
    );

    // No tmpfs, which would keep what must go with the power.
    let (output, checks) = doctor(&host, "/proc");
    assert_eq!(status(&checks, "runtime directory"), ["fail"]);
    assert_eq!(output.status.code(), Some(1));
    let said: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(said["code"], "HostNotFit");
    assert!(
        said["message"]
            .as_str()
            .unwrap()
            .contains("runtime directory"),
        "{said}"
    );

    host.ok(&format!(
        "keyvault key set-attributes {KEY} --vault-name {VAULT} --enabled false --yes"
    ));
    let (output, checks) = doctor(&host, at);
    assert_eq!(
        status(&checks, "disk encryption set"),
        ["fail"],
        "{checks:?}"
    );
    assert_eq!(output.status.code(), Some(1));

    std::fs::remove_file(host.state().join(format!("vaults/{VAULT}/vault.db"))).unwrap();
    let (_, checks) = doctor(&host, at);
    assert!(status(&checks, "vault").contains(&"fail"), "{checks:?}");
    let table = host.run(&format!("doctor --runtime-dir {at}"));
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(
        table.starts_with("CHECK ") && table.contains(" FAIL "),
        "{table}"
    );
}

/// The lines that a command logs.
fn logged(host: &Host, format: &str, prepare: impl FnOnce(&mut Command)) -> Vec<String> {
    let mut command = host.command(&format!("-v disk list --log-format {format}"));
    prepare(&mut command);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    said.lines().map(str::to_owned).collect()
}

#[test]
fn the_log_is_for_people_for_programs_or_for_the_journal() {
    let host = Host::new();
    let text = logged(&host, "text", |_| {});
    assert!(
        text[0].contains("INFO") && text[0].contains("sealdisk 0."),
        "{text:?}"
    );

    for line in logged(&host, "json", |_| {}) {
        let value: Value = serde_json::from_str(&line).unwrap();
        for field in ["time", "level", "target", "message"] {
            assert!(value[field].is_string(), "{line}");
        }
        assert!(value["process"].is_u64(), "{line}");
    }
    // By the environment, as processes of an attach get it.
    let line = &logged(&host, "text", |command| {
        command.env("SEALDISK_LOG_FORMAT", "json");
    })[0];
    assert!(line.contains("INFO"), "the option counts: {line}");
    let mut command = host.command("-v disk list");
    let output = command.env("SEALDISK_LOG_FORMAT", "json").output().unwrap();
    let first = String::from_utf8(output.stderr).unwrap();
    serde_json::from_str::<Value>(first.lines().next().unwrap()).unwrap();
}

/// The attach process, its data plane, and the same after another program has taken over.
#[test]
fn all_processes_of_an_attach_log_in_the_same_form() {
    let host = Host::new();
    let runtime = runtime_dir();
    host.ok("disk create d --size 1MiB");
    let log = host.path("log");
    let (socket, at) = (host.path("socket"), text(runtime.path()).to_owned());
    let attach = [
        "attach",
        "d",
        "-v",
        "--log-format",
        "json",
        "--runtime-dir",
        &at,
    ];
    let mut command = host.command(&attach);
    command.args(["--socket-path", text(&socket)]);
    let attached = Attached::logging_to(&log, &socket, command);
    host.ok(&format!("upgrade d --runtime-dir {at}"));
    attached.detach();
    let logged = std::fs::read_to_string(&log).unwrap();
    let mut processes = BTreeSet::new();
    for line in logged.lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {logged}"));
        processes.insert(value["process"].as_u64().unwrap());
    }
    // A launcher says nothing. A data plane is the first process of its namespace.
    assert!(processes.len() >= 2 && processes.contains(&1), "{logged}");
    assert!(logged.matches("\"sealdisk 0.").count() >= 4, "{logged}");
}

/// What systemd's journal gets, of which this test plays the part: it takes datagrams at a place that is fixed, so the
/// program sees another `/run`. Only root can have that.
#[test]
fn the_journal_gets_fields() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let host = Host::new();
    let socket = host.path("journal");
    let journal = UnixDatagram::bind(&socket).unwrap();
    journal
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let place = "/run/systemd/journal";
    let line = format!(
        "mount -t tmpfs none /run && mkdir -p {place} && touch {place}/socket && \
         mount --bind {} {place}/socket && exec {} -v disk list --log-format journal",
        text(&socket),
        text(program())
    );
    let mut command = Command::new("unshare");
    host.prepare(&mut command);
    let output = command
        .args(["--mount", "sh", "-c", &line])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut bytes = [0; 4096];
    // The first is empty: a trial of the socket.
    let mut len = 0;
    while len == 0 {
        len = journal.recv(&mut bytes).unwrap();
    }
    let fields = String::from_utf8_lossy(&bytes[..len]).into_owned();
    for field in [
        "PRIORITY=5\n",
        "TARGET=sealdisk",
        "CODE_FILE=",
        "SEALDISK_VERSION=0.",
    ] {
        assert!(fields.contains(field), "{fields}");
    }
    let logged = String::from_utf8(output.stderr).unwrap();
    assert!(!logged.contains("INFO"), "{logged}");
}
