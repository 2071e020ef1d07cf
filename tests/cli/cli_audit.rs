//! The audit logs through the real command: what is recorded, found, exported and archived.

use std::fs;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use super::my_vault::{IN_VAULT, MyVault, host_with_vault, json_lines};

#[test]
fn logs_are_listed_verified_exported_and_tampering_is_named() {
    let host = host_with_vault();
    host.key("create k --size 2048");
    host.refused_with(
        "KeyNotFound",
        &format!("keyvault key show other {IN_VAULT}"),
    );
    let records = host.lines("audit list --vault myvault");
    let last = records.last().unwrap();
    assert_eq!(last["outcome"], "refused");
    assert_eq!(last["code"], "KeyNotFound");
    assert!(
        last["origin"].as_str().unwrap().starts_with("local, uid "),
        "{last}"
    );
    assert_eq!(
        host.lines("audit list --vault myvault --last 1"),
        std::slice::from_ref(last)
    );
    let after = format!("audit list --vault myvault --after {}", records.len() - 1);
    assert_eq!(host.lines(&after), std::slice::from_ref(last));
    assert_eq!(
        host.json("keyvault audit-log myvault")
            .as_array()
            .unwrap()
            .len(),
        records.len()
    );

    let reports = host.lines("audit verify");
    let intact = |reports: &[Value]| reports.iter().all(|report| report["intact"] == true);
    assert_eq!(reports.len(), 2);
    assert!(intact(&reports));
    let (export, heads) = (host.file("export.jsonl"), host.file("heads.jsonl"));
    assert!(
        host.run(&format!("audit export --output-file {export}"))
            .status
            .success()
    );
    let checkpoints = host.run("audit export --checkpoints-only").stdout;
    let lines = json_lines(&checkpoints);
    // What counts refusals is covered by the head, and so is there too.
    assert_eq!(
        lines
            .iter()
            .filter(|line| line["type"] != "counter")
            .count(),
        4
    );
    fs::write(&heads, &checkpoints).unwrap();

    host.json("disk-encryption-set create s --key-url https://myvault.vault.localhost/keys/k");
    let own = host.lines("audit list --installation");
    assert_eq!(own[0]["operation"], "DiskEncryptionSetCreateIntent");
    assert_eq!(own[1]["operation"], "DiskEncryptionSetCreate");
    assert_eq!(own[0]["key"], "https://myvault.vault.localhost/keys/k");

    // Elsewhere, without the installation.
    let elsewhere = |line: &str| {
        let mut command = host.command(line);
        command
            .env("SEALDISK_STATE_DIR", "/nonexistent/state")
            .output()
            .unwrap()
    };
    let line = format!("audit verify --file {export} --checkpoint {heads} -o json");
    let output = elsewhere(&line);
    assert!(output.status.success(), "{output:?}");
    assert!(intact(&json_lines(&output.stdout)));
    let changed = fs::read_to_string(&export)
        .unwrap()
        .replace("KeyCreate", "KeyImport");
    fs::write(&export, changed).unwrap();
    let output = elsewhere(&line);
    assert_eq!(output.status.code(), Some(1));
    let bad = json_lines(&output.stdout);
    assert_eq!(bad[0]["firstBadRecord"], 2, "{bad:?}");

    // Here, with what happened meanwhile.
    host.key("list");
    let verify = format!("audit verify --checkpoint {heads}");
    let reports = host.lines(&verify);
    assert!(intact(&reports));
    assert!(reports.iter().all(|report| report["checkpoints"] == 1));
    let old = host.file("old.db");
    rusqlite::Connection::open(host.database())
        .unwrap()
        .execute("VACUUM INTO ?", [&old])
        .unwrap();
    host.tamper("UPDATE audit SET caller = 'x' WHERE seq = 2");
    let report = host.run("audit verify -o json");
    assert_eq!(report.status.code(), Some(1));
    let found = json_lines(&report.stdout);
    assert_eq!(found[0]["firstBadRecord"], 2);
    let error: Value = serde_json::from_slice(&report.stderr).unwrap();
    assert_eq!(error["code"], "AuditLogTampered");

    // Put back to a state from before the next checkpoint: only that checkpoint tells.
    for _ in 0..3 {
        let left = host.run("keyvault key list --vault-name myvault");
        assert!(left.status.success());
    }
    let later = host.run("audit export --checkpoints-only").stdout;
    fs::write(host.file("later.jsonl"), later).unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let path = format!("{}{suffix}", host.database().display());
        let _ = fs::remove_file(path);
    }
    fs::copy(&old, host.database()).unwrap();
    // What was seen last is beside it, unless whoever put it back has put that back too.
    assert_eq!(host.run("audit verify").status.code(), Some(1));
    fs::remove_file(host.database().with_extension("seen")).unwrap();
    assert!(host.run("audit verify").status.success());
    let verify = format!(
        "audit verify --checkpoint {} -o json",
        host.file("later.jsonl")
    );
    let found = json_lines(&host.run(&verify).stdout);
    let finding = found[0]["finding"].as_str().unwrap();
    assert!(
        finding.contains("put back to an earlier state"),
        "{finding}"
    );

    // A log whose file is gone is not begun anew as if nothing had been.
    let own = host.state().join("audit.db");
    assert!(own.exists());
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{suffix}", own.display()));
    }
    let found = host.run("audit verify --installation -o json");
    assert_eq!(found.status.code(), Some(1));
    assert_eq!(json_lines(&found.stdout)[0]["intact"], false);
    host.refused_with(
        "BadParameter",
        "audit verify --file /dev/null --checkpoint /dev/null",
    );
}

/// A change of a set is on record before it is made, and its outcome after: whatever moment it is
/// killed at, a new key has a record.
#[test]
fn a_kill_at_any_moment_of_a_change_of_a_set_leaves_a_record_of_it() {
    let host = host_with_vault();
    let url = |key: &str| format!("https://myvault.vault.localhost/keys/{key}");
    for key in ["k0", "k1"] {
        host.key(&format!("create {key} --size 2048"));
    }
    host.json(&format!(
        "disk-encryption-set create s --key-url {}",
        url("k0")
    ));
    let current = || {
        let set = host.json("disk-encryption-set show s");
        set["activeKey"]["keyUrl"].as_str().unwrap().to_owned()
    };
    let records = || host.lines("audit list --installation");
    let mut moment = 11_u64;
    let (mut finished, mut killed) = (0, 0);
    for round in 1..=20 {
        let (before, known) = (current(), records().len());
        let wanted = url(&format!("k{}", round % 2));
        let mut child = host
            .command(&format!("disk-encryption-set update s --key-url {wanted}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        moment = (moment * 7919 + 104_729) % 120_000;
        sleep(Duration::from_micros(moment));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let (after, log) = (current(), records());
        let new = &log[known..];
        let of = |operation: &str| {
            new.iter()
                .filter(move |r| r["operation"] == *operation)
                .count()
        };
        let (intents, outcomes) = (
            of("DiskEncryptionSetUpdateIntent"),
            of("DiskEncryptionSetUpdate"),
        );
        assert!(before == after || intents == 1, "round {round}: {new:?}");
        assert_eq!(intents, outcomes, "round {round}: {new:?}");
        if intents == 1 {
            let outcome = new
                .iter()
                .find(|r| r["operation"] == "DiskEncryptionSetUpdate");
            match outcome.unwrap()["code"].as_str() {
                None => finished += 1,
                Some(code) => {
                    assert_eq!(code, "Unfinished");
                    assert!(!status.success());
                    killed += 1;
                }
            }
        }
    }
    println!("{finished} finished, {killed} killed in the middle");
    let report = host.lines("audit verify --installation");
    assert_eq!(report[0]["intact"], true, "{report:?}");
}

#[test]
fn refused_changes_of_sets_are_on_record() {
    let host = host_with_vault();
    host.key("create k --size 2048");
    let url = "https://myvault.vault.localhost/keys/k";
    host.refused_with(
        "KeyNotFound",
        "disk-encryption-set create s --key-url https://myvault.vault.localhost/keys/none",
    );
    host.json(&format!("disk-encryption-set create s --key-url {url}"));
    host.key("set-attributes k --enabled false");
    host.refused_with(
        "KeyDisabled",
        &format!("disk-encryption-set create t --key-url {url}"),
    );
    host.refused_with("Conflict", "disk-encryption-set identity assign s");
    let log = host.lines("audit list --installation");
    let refused: Vec<_> = log
        .iter()
        .filter(|r| r["outcome"] == "refused")
        .map(|r| {
            (
                r["operation"].as_str().unwrap(),
                r["code"].as_str().unwrap(),
            )
        })
        .collect();
    let expected = [
        ("DiskEncryptionSetCreate", "KeyNotFound"),
        ("DiskEncryptionSetCreate", "KeyDisabled"),
        ("DiskEncryptionSetAssignIdentity", "Conflict"),
    ];
    assert_eq!(refused, expected);
}

#[test]
fn logs_are_archived_and_verified_with_what_was_taken_out_of_them() {
    let host = host_with_vault();
    host.key("create k --size 2048");
    let archive = host.file("archive");
    fs::create_dir(&archive).unwrap();
    let heads = host.run("audit export --checkpoints-only").stdout;
    fs::write(host.file("heads.jsonl"), heads).unwrap();
    let line = format!("audit archive --output-dir {archive}");
    let first = host.lines(&line);
    assert_eq!(first[0]["log"], "vault/myvault");
    assert_eq!(first[0]["first"], 1);
    for _ in 0..3 {
        host.key("list");
    }
    assert!(host.lines(&format!("{line} --older-than 1")).is_empty());
    let second = host.lines(&line);
    assert_eq!(second[0]["first"], first[0]["last"].as_u64().unwrap() + 1);
    let left = host.lines("audit list --vault myvault");
    assert_eq!(left[0]["operation"], "AuditArchive");
    assert_eq!(left.len(), 1);

    let files: Vec<String> = fs::read_dir(&archive)
        .unwrap()
        .map(|entry| entry.unwrap().path().display().to_string())
        .collect();
    // In whatever order they are given.
    let verify = format!(
        "audit verify --archive {} --checkpoint {}",
        files.join(" "),
        host.file("heads.jsonl")
    );
    let report = host.lines(&verify);
    assert!(report.iter().all(|log| log["intact"] == true), "{report:?}");
    assert_eq!(report[0]["archived"], 0);
    assert_eq!(report[0]["checkpoints"], 1);
    let alone = host.lines("audit verify");
    assert_eq!(alone[0]["archived"], second[0]["last"]);
    // One that was not given is no tampering.
    let (older, newer) = (&first[0], &second[0]);
    for (given, missing) in [(older, newer), (newer, older)] {
        let file = given["file"].as_str().unwrap();
        let verified = host.run(&format!(
            "audit verify --vault myvault --archive {file} -o json"
        ));
        assert_eq!(verified.status.code(), Some(3), "{verified:?}");
        let report = &json_lines(&verified.stdout)[0];
        assert_eq!(
            (&report["intact"], &report["finding"]),
            (&true.into(), &Value::Null)
        );
        assert_eq!(report["notGiven"][0]["first"], missing["first"]);
        assert_eq!(report["notGiven"][0]["last"], missing["last"]);
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        assert!(said.contains("AuditSegmentNotGiven"), "{said}");
        assert!(!said.contains("tampered"), "{said}");
    }
    let file = second[0]["file"].as_str().unwrap();
    // Nothing is no log, and a log that is not there is not intact.
    fs::write(host.file("empty.jsonl"), "").unwrap();
    for option in ["--file", "--archive"] {
        let line = format!("audit verify {option} {}", host.file("empty.jsonl"));
        host.refused_with("BadParameter", &line);
    }
    fs::write(
        host.file("whole.jsonl"),
        host.run("audit export --checkpoints-only").stdout,
    )
    .unwrap();
    fs::write(
        host.file("own.jsonl"),
        host.run("audit export --installation").stdout,
    )
    .unwrap();
    let line = format!(
        "audit verify --file {} --checkpoint {}",
        host.file("own.jsonl"),
        host.file("whole.jsonl")
    );
    let output = host.run(&format!("{line} -o json"));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("vault/myvault too"), "{said}");
    assert!(!output.status.success());
    let changed = fs::read_to_string(file)
        .unwrap()
        .replace("KeyList", "KeyLost");
    fs::write(file, changed).unwrap();
    assert!(!host.run(&verify).status.success());
    let status = host.run("audit status -o json");
    let logs = json_lines(&status.stdout);
    assert_eq!(logs[0]["archived"], second[0]["last"]);
    assert_eq!(logs[0]["records"].as_u64(), Some(1));
    let low = logs.iter().any(|log| log["low"] == true);
    assert_eq!(status.status.code(), Some(if low { 3 } else { 0 }));
}
