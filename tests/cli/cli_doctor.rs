//! `sealdisk doctor`.

use std::process::Output;

use serde_json::Value;
use test_support::{Host, KEY, VAULT};

use super::attached::runtime_dir;

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
