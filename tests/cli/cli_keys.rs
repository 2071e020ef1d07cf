//! The whole life of a key through the real command; what is left after a kill or on a full disk.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use serde_json::{Value, json};
use test_support::{Host, deaths, program};

use super::my_vault::{IN_VAULT, MyVault, host_with_vault};

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
    for round in 0..deaths(10) as usize {
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
        // What may be left in the key's place is logged before.
        let said = String::from_utf8(output.stderr).unwrap();
        let error: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
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
