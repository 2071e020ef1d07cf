//! The whole life of a key, and the audit logs, through the real command; what is left after a
//! kill or on a full disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use serde_json::{Value, json};
use test_support::{Host, program};

const IN_VAULT: &str = "--vault-name myvault";

/// An installation of its own with the vault `myvault`.
fn host_with_vault() -> Host {
    let host = Host::new();
    host.ok("keyvault create myvault --retention-days 7");
    host
}

/// Shorter ways to work on that vault.
trait MyVault {
    fn database(&self) -> PathBuf;
    fn key(&self, line: &str) -> Value;
    fn lines(&self, line: &str) -> Vec<Value>;
    fn written(&self, name: &str, content: &str) -> String;
    fn tamper(&self, sql: &str);
}

impl MyVault for Host {
    fn database(&self) -> PathBuf {
        self.state().join("vaults/myvault/vault.db")
    }

    fn key(&self, line: &str) -> Value {
        self.json(&format!("keyvault key {line} {IN_VAULT}"))
    }

    fn lines(&self, line: &str) -> Vec<Value> {
        let output = self.run(&format!("{line} -o json"));
        json_lines(&output.stdout)
    }

    fn written(&self, name: &str, content: &str) -> String {
        fs::write(self.path(name), content).unwrap();
        self.file(name)
    }

    fn tamper(&self, sql: &str) {
        let db = rusqlite::Connection::open(self.database()).unwrap();
        db.execute_batch(sql).unwrap();
    }
}

fn json_lines(text: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(text).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_key_lives_is_deleted_recovered_and_purged() {
    let host = host_with_vault();
    let made = host.key("create k --size 2048 --ops wrapKey unwrapKey --tags team=blue empty=");
    assert_eq!(made["key"]["key_ops"], json!(["wrapKey", "unwrapKey"]));
    assert_eq!(made["tags"], json!({"empty": "", "team": "blue"}));
    assert_eq!(made["attributes"]["recoverableDays"], 7);
    let changed = host.key("set-attributes k --tags a=b --ops wrapKey");
    assert_eq!(changed["tags"], json!({"a": "b"}));
    assert_eq!(changed["key"]["key_ops"], json!(["wrapKey"]));
    let untagged = host
        .command(&format!("keyvault key set-attributes k {IN_VAULT} -o json"))
        .args(["--tags", ""])
        .output()
        .unwrap();
    let untagged: Value = serde_json::from_slice(&untagged.stdout).unwrap();
    assert_eq!(untagged["tags"], Value::Null);

    let rotated = host.key("rotate k");
    assert_ne!(rotated["key"]["kid"], made["key"]["kid"]);
    let backup = host.file("k.backup");
    host.json(&format!("keyvault key backup k {IN_VAULT} --file {backup}"));
    let again = format!("keyvault key backup k {IN_VAULT} --file {backup}");
    host.refused_with("OutputError", &again);

    let deleted = host.key("delete k");
    let recovery = "https://myvault.vault.localhost/deletedkeys/k";
    assert_eq!(deleted["recoveryId"], recovery);
    host.refused_with("KeyNotFound", &format!("keyvault key show k {IN_VAULT}"));
    let create = format!("keyvault key create k {IN_VAULT} --size 2048");
    let message = host.refused_with("ObjectIsDeletedButRecoverable", &create);
    let command = message.split("`sealdisk ").nth(1).unwrap();
    assert_eq!(host.key("list-deleted")[0], deleted);
    assert_eq!(host.key("show-deleted k"), deleted);
    host.json(command.split('`').next().unwrap());
    assert_eq!(host.key("show k"), rotated);

    host.key("delete k");
    let purge = format!("keyvault key purge k {IN_VAULT}");
    host.refused_with("ConfirmationRequired", &purge);
    host.json(&format!("{purge} --yes"));
    assert_eq!(host.key("list-deleted"), json!([]));
    let restore = |file: &str| format!("keyvault key restore {IN_VAULT} --file {file}");
    let mut cut = fs::read(&backup).unwrap();
    cut.pop();
    fs::write(host.file("cut"), cut).unwrap();
    host.refused_with("BadParameter", &restore(&host.file("cut")));
    assert_eq!(host.json(&restore(&backup)), rotated);
    host.refused_with("Conflict", &restore(&backup));
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&backup).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    host.json("keyvault update myvault --enable-purge-protection true");
    host.refused_with(
        "ForbiddenByPolicy",
        "keyvault update myvault --enable-purge-protection false",
    );
    host.refused_with("BadParameter", "keyvault update myvault --retention-days 8");
    host.json("keyvault update myvault --retention-days 7");
    let vault = host.json("keyvault show myvault");
    assert_eq!(vault["properties"]["enablePurgeProtection"], true);
    assert_eq!(vault["properties"]["softDeleteRetentionInDays"], 7);
    host.key("delete k");
    host.refused_with("ForbiddenByPolicy", &format!("{purge} --yes"));
}

#[test]
fn rotation_policies_are_those_of_the_azure_cli() {
    let host = host_with_vault();
    host.key("create k --size 2048");
    let default = host.key("rotation-policy show k");
    assert_eq!(default["lifetimeActions"][0]["action"]["type"], "Notify");
    let policy = r#"{
        "lifetimeActions": [
            {"trigger": {"timeAfterCreate": "P90D", "timeBeforeExpiry": null},
             "action": {"type": "Rotate"}},
            {"trigger": {"timeBeforeExpiry": "P30D"}, "action": {"type": "Notify"}}
        ],
        "attributes": {"expiryTime": "P2Y"}}"#;
    let file = host.written("policy.json", policy);
    let set = host.key(&format!("rotation-policy update k --value {file}"));
    assert_eq!(set["attributes"]["expiryTime"], "P2Y");
    assert!(set["attributes"]["created"].is_i64());
    assert_eq!(host.key("rotation-policy show k"), set);
    assert!(host.key("rotate k")["attributes"]["expires"].is_string());
    for bad in [
        "{}x",
        r#"{"lifetimeActions":[{"trigger":{},"action":{"type":"Rotate"}}]}"#,
    ] {
        let file = host.written("bad.json", bad);
        let line = format!("keyvault key rotation-policy update k {IN_VAULT} --value {file}");
        host.refused_with("BadParameter", &line);
    }
    // Nothing is due, and it may be asked as often as one likes.
    assert!(host.run("keyvault run-due").stderr.is_empty());
    // The version is old enough once its making lies back.
    host.tamper("UPDATE key_versions SET created = '2020-01-01T00:00:00Z'");
    let due = host.run("keyvault run-due");
    let done = String::from_utf8(due.stderr).unwrap();
    assert!(done.contains("rotated the key 'k'"), "{done}");
    assert!(host.run("keyvault run-due").stderr.is_empty());
    let versions = host.key("list-versions k");
    assert_eq!(versions.as_array().unwrap().len(), 3);
}

#[test]
fn json_web_keys_are_imported() {
    let host = host_with_vault();
    let key = rsa::PrivateKey::new(&mut getrandom::SysRng, 2048).unwrap();
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let [p, q] = key.primes() else { panic!() };
    let jwk = json!({
        "kty": "RSA",
        "n": number(&key.n_bytes()),
        "e": number(&key.e_bytes()),
        "d": number(&key.d().to_be_bytes()),
        "p": number(&p.to_be_bytes()),
        "q": number(&q.to_be_bytes()),
    });
    let file = host.written("k.jwk", &jwk.to_string());
    let made = host.key(&format!("import k --jwk-file {file} --protection software"));
    assert_eq!(made["key"]["n"], jwk["n"]);
    let import = format!("keyvault key import k {IN_VAULT}");
    let hsm = format!("{import} --jwk-file {file} --protection hsm");
    host.refused_with("BadParameter", &hsm);
    // What is to be in hardware doesn't become software.
    let in_hardware = jwk.to_string().replace("\"RSA\"", "\"RSA-HSM\"");
    let in_hardware = host.written("hsm.jwk", &in_hardware);
    host.refused_with(
        "BadParameter",
        &format!("{import} --jwk-file {in_hardware}"),
    );
    for bad in [
        "",
        "{}",
        r#"{"kty":"EC"}"#,
        &jwk.to_string().replace("\"n\"", "\"m\""),
    ] {
        let file = host.written("bad.jwk", bad);
        let message = host.refused_with("BadParameter", &format!("{import} --jwk-file {file}"));
        assert!(!message.contains(jwk["d"].as_str().unwrap()));
    }
    let neither = host.run(&import);
    assert_eq!(neither.status.code(), Some(2));
}

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

/// A kill at any moment of making, rotating and purging leaves a vault in which each key is whole
/// or not there, with a log that verifies.
#[test]
fn a_kill_at_any_moment_loses_nothing() {
    let host = host_with_vault();
    host.key("create stays --size 2048");
    let secret = host.file("stays.backup");
    host.json(&format!(
        "keyvault key backup stays {IN_VAULT} --file {secret}"
    ));
    let lines = [
        "create new --size 2048",
        "rotate stays",
        "delete stays",
        "recover stays",
        "purge gone --yes",
    ];
    let mut moment = 7_u64;
    for round in 0..30 {
        // `gone` is there to be purged in each round.
        host.run(&format!("keyvault key recover gone {IN_VAULT}"));
        host.key("create gone --size 2048");
        host.key("delete gone");
        host.run(&format!("keyvault key recover stays {IN_VAULT}"));
        let line = lines[round % lines.len()];
        let mut child = host
            .command(&format!("keyvault key {line} {IN_VAULT}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Spread over the time that a command takes, a little anew in each round.
        moment = (moment * 7919 + 104_729) % 60_000;
        sleep(Duration::from_micros(moment));
        child.kill().unwrap();
        child.wait().unwrap();

        let report = host.lines("audit verify --vault myvault");
        assert_eq!(report[0]["intact"], true, "{line}: {report:?}");
        host.run(&format!("keyvault key recover stays {IN_VAULT}"));
        let versions = host.key("list-versions stays");
        assert!(!versions.as_array().unwrap().is_empty(), "{line}");
        for key in host.key("list").as_array().unwrap() {
            assert_usable(&host, key["name"].as_str().unwrap());
        }
    }
}

/// A key's every version can be opened: a backup reads all private parts.
fn assert_usable(host: &Host, name: &str) {
    let file = host.file("usable");
    let _ = fs::remove_file(&file);
    host.json(&format!(
        "keyvault key backup {name} {IN_VAULT} --file {file}"
    ));
}

/// The file of the database cannot grow any more, as on a full disk.
#[test]
fn a_full_disk_is_an_error_and_nothing_is_lost() {
    let host = host_with_vault();
    host.key("create k --size 2048");
    let size = |path: &Path| fs::metadata(path).map_or(0, |m| m.len());
    let limit = size(&host.database()).div_ceil(512) + 8;
    let limited = |line: &str| {
        let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" {line} -o json");
        Command::new("sh")
            .args(["-c", &script, program().to_str().unwrap()])
            .env("SEALDISK_STATE_DIR", host.state())
            .env_remove("CREDENTIALS_DIRECTORY")
            .output()
            .unwrap()
    };
    let mut failed = 0;
    for n in 0..40 {
        let output = limited(&format!("keyvault key create k{n} {IN_VAULT} --size 2048"));
        match output.status.code() {
            Some(0) => continue,
            Some(1) => {}
            other => panic!("{other:?}: {output:?}"),
        }
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        // The limit on a file's length is an I/O error to SQLite; a full disk is told as such.
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("I/O error") || message.contains("no space"),
            "{error}"
        );
        failed += 1;
        if failed == 3 {
            break;
        }
    }
    assert_eq!(failed, 3, "the limit was never reached");
    let report = host.lines("audit verify --vault myvault");
    assert_eq!(report[0]["intact"], true, "{report:?}");
    for key in host.key("list").as_array().unwrap() {
        assert_usable(&host, key["name"].as_str().unwrap());
    }
    host.key("create after --size 2048");
}

#[test]
fn names_are_given_as_with_az_and_in_any_case() {
    let host = host_with_vault();
    host.json("keyvault create --name Other");
    assert_eq!(host.json("keyvault show -n OTHER")["name"], "other");
    let made = host.key("create --name MyKey --size 2048");
    let shown = host.key("show --name mykey");
    assert_eq!(made["key"]["kid"], shown["key"]["kid"]);
    let kid = made["key"]["kid"].as_str().unwrap().to_owned();
    assert!(kid.contains("/keys/MyKey/"), "{kid}");
    host.key("rotate -n MYKEY");
    assert_eq!(
        host.key("list-versions -n mykey").as_array().unwrap().len(),
        2
    );
    assert_eq!(host.key("list").as_array().unwrap().len(), 1);
    let version = kid.rsplit('/').next().unwrap();
    let disable = format!("set-attributes --name mykey --version {version} --enabled false");
    assert_eq!(host.key(&disable)["attributes"]["enabled"], false);

    let set = "disk-encryption-set create --name set --key-url https://MyVault.vault.localhost/keys/MYKEY";
    let id = host.json(set)["identity"]["principalId"]
        .as_str()
        .unwrap()
        .to_owned();
    host.json(&format!(
        "keyvault set-policy --name myvault --object-id {id} --key-permissions get wrapKey unwrapKey"
    ));
    host.json("disk create --name disk --size 1MiB --disk-encryption-set set");
    let shown = host.json("disk show -n disk");
    let url = shown["encryption"]["keyUrl"].as_str().unwrap();
    assert!(url.contains("/keys/MyKey/"), "{url}");
    // Another spelling is no other key: nothing is wrapped again.
    host.json(
        "disk-encryption-set update -n set --key-url https://myvault.vault.localhost/keys/mykey",
    );
    assert_eq!(host.json("disk show disk")["encryption"]["keyUrl"], url);
    assert_eq!(
        host.json("disk-encryption-set show set")["previousKeys"],
        json!([])
    );

    for both in [
        "keyvault show myvault --name myvault",
        "keyvault key show k --name k --vault-name myvault",
        "keyvault show",
    ] {
        let output = host.run(both);
        assert_eq!(output.status.code(), Some(2), "{both}: {output:?}");
    }
    let help = host.run("keyvault key create --help");
    assert!(String::from_utf8_lossy(&help.stdout).contains("-n, --name <NAME>"));
}

#[test]
fn an_empty_time_takes_the_limit_away() {
    let host = host_with_vault();
    host.key("create k --size 2048 --expires 2099-01-01 --not-before 2020-01-01");
    let mut command = host.command(&format!("keyvault key set-attributes k {IN_VAULT} -o json"));
    let output = command
        .args(["--expires", "", "--not-before", ""])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let key: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(key["attributes"]["expires"], Value::Null);
    assert_eq!(key["attributes"]["notBefore"], Value::Null);
}

/// Runs the same commands at once; all have to succeed.
fn all_at_once(host: &Host, lines: &[&str]) {
    let children: Vec<_> = lines
        .iter()
        .map(|line| {
            let mut command = host.command(*line);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for (line, child) in lines.iter().zip(children) {
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {stderr}");
    }
}

#[test]
fn commands_that_meet_take_turns() {
    let host = host_with_vault();
    host.key("create k --size 2048");
    let url = "https://myvault.vault.localhost/keys/k";
    let set = host.json(&format!("disk-encryption-set create set --key-url {url}"));
    let id = set["identity"]["principalId"].as_str().unwrap();
    host.json(&format!(
        "keyvault set-policy myvault --object-id {id} --key-permissions get wrapKey unwrapKey"
    ));
    host.json("disk create disk --size 1MiB --disk-encryption-set set");
    all_at_once(&host, &["keyvault key rotate k --vault-name myvault"; 4]);
    assert_eq!(host.key("list-versions k").as_array().unwrap().len(), 5);
    let follow = "disk-encryption-set update set --enable-auto-key-rotation true";
    all_at_once(&host, &[follow; 4]);
    host.key("rotate k");
    all_at_once(&host, &["disk-encryption-set rotate set"; 4]);
    let update = format!("disk-encryption-set update set --key-url {url}");
    all_at_once(&host, &[update.as_str(), follow, &update, follow]);
    host.json("identity create alice");
    all_at_once(&host, &["identity reset-secret alice"; 4]);
    let usage = host.json("disk-encryption-set show-usage set");
    assert_eq!(usage[0]["resources"][0]["name"], "disk", "{usage}");
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
