//! Vaults and audit logs of an installation whose catalog is on a server.

use std::fs;

use serde_json::Value;
use test_support::postgres::PostgresServer;
use test_support::{Host, text};

use super::{joined, names, on_server};

/// The JSON lines that a command prints that must succeed.
fn lines(host: &Host, line: &str) -> Vec<Value> {
    let said = host.text(&format!("{line} -o json"));
    let parsed = said.lines().map(serde_json::from_str);
    parsed.collect::<Result<_, _>>().unwrap()
}

fn key_url(name: &str) -> String {
    format!("https://myvault.vault.localhost/keys/{name}")
}

/// A set of the key `k` of `myvault`, which are made too.
fn make_set(host: &Host) {
    host.ok("keyvault create myvault --retention-days 7");
    host.ok("keyvault key create k --vault-name myvault --size 2048");
    let url = key_url("k");
    let set = host.json(&format!("disk-encryption-set create s --key-url {url}"));
    let id = set["identity"]["principalId"].as_str().unwrap();
    host.ok(&format!(
        "keyvault set-policy myvault --object-id {id} --key-permissions get wrapKey unwrapKey"
    ));
}

#[test]
fn what_is_done_with_vaults_and_keys_is_the_same_on_a_server() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let (host, _) = on_server(server);
    make_set(&host);
    let raw = host.raw_image("disk.raw");
    host.ok(&format!(
        "disk create d --source {} --disk-encryption-set s",
        text(&raw)
    ));
    host.ok("keyvault key rotate k --vault-name myvault");
    host.ok("disk-encryption-set update s --enable-auto-key-rotation true");
    host.ok("disk rotate-dek d");
    assert!(host.ok("disk decrypt d") == fs::read(&raw).unwrap());
    let versions = host.json("keyvault key list-versions k --vault-name myvault");
    assert_eq!(versions.as_array().unwrap().len(), 2);

    // A key is deleted, recovered, backed up, purged and restored.
    host.ok("keyvault key create other --vault-name myvault --size 2048");
    let backup = host.file("key.backup");
    host.ok(&format!(
        "keyvault key backup other --vault-name myvault --file {backup}"
    ));
    host.ok("keyvault key delete other --vault-name myvault --yes");
    host.ok("keyvault key recover other --vault-name myvault");
    host.ok("keyvault key delete other --vault-name myvault --yes");
    host.ok("keyvault key purge other --vault-name myvault --yes");
    host.ok(&format!(
        "keyvault key restore --vault-name myvault --file {backup}"
    ));
    host.ok("keyvault key show other --vault-name myvault");
    let refused = host.refused_with("KeyNotFound", "keyvault key show othr --vault-name myvault");
    assert!(refused.contains("did you mean 'other'"), "{refused}");

    host.ok("keyvault reseal myvault");
    assert!(host.ok("disk decrypt d") == fs::read(&raw).unwrap());
    let refused = host.refused_with("BadParameter", "keyvault reseal myvault --tpm2");
    assert!(refused.contains("--master-credential"), "{refused}");
    host.ok("keyvault run-due");

    // The vault itself.
    let refused = host.refused_with("VaultInUse", "keyvault delete myvault --yes");
    assert!(refused.contains("'s'"), "{refused}");
    host.ok("keyvault delete myvault --force --yes");
    host.refused_with("VaultDeleted", "disk decrypt d");
    assert_eq!(names(&host, "keyvault"), Vec::<String>::new());
    assert_eq!(host.json("keyvault list-deleted")[0]["name"], "myvault");
    host.refused_with("VaultDeleted", "keyvault create myvault");
    host.ok("keyvault recover myvault");
    assert!(host.ok("disk decrypt d") == fs::read(&raw).unwrap());
    host.ok("keyvault delete myvault --force --yes");
    host.ok("keyvault purge myvault --yes");
    host.refused_with("KeyNotFound", "disk decrypt d");
    assert!(!host.state().join("vaults/myvault").exists());
    // The name is free, and the keys of the old one are gone.
    host.ok("keyvault create myvault");
    host.refused("disk decrypt d");
}

#[test]
fn logs_on_a_server_are_listed_verified_exported_and_archived() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let (host, url) = on_server(server);
    make_set(&host);
    host.ok("disk create d --size 1MiB --disk-encryption-set s");
    let of_vault = lines(&host, "audit list --vault myvault");
    let operations: Vec<_> = of_vault.iter().map(|of| of["operation"].as_str()).collect();
    assert!(operations.contains(&Some("KeyWrap")), "{operations:?}");
    let own = lines(&host, "audit list --installation");
    assert_eq!(own[1]["operation"], "DiskEncryptionSetCreate");
    let verified = lines(&host, "audit verify");
    assert_eq!(verified.len(), 2);
    assert!(verified.iter().all(|report| report["intact"] == true));
    let status = lines(&host, "audit status");
    assert_eq!(status.len(), 2);
    for log in &status {
        assert!(log["bytes"].as_u64().unwrap() > 0, "{log}");
        assert_eq!(log["availableBytes"], Value::Null);
        assert_eq!(log["low"], false);
    }

    // Checkpoints that are kept elsewhere, and all of it on any machine.
    let (export, heads) = (host.file("export.jsonl"), host.file("heads.jsonl"));
    host.ok(&format!("audit export --output-file {export}"));
    let checkpoints = host.ok("audit export --checkpoints-only");
    fs::write(&heads, checkpoints).unwrap();
    Host::new().ok(&format!("audit verify --file {export}"));
    let archive = host.path("archive");
    fs::create_dir(&archive).unwrap();
    let archived = lines(
        &host,
        &format!("audit archive --output-dir {}", text(&archive)),
    );
    assert_eq!(archived.len(), 2);
    let segments = archived.iter().map(|of| of["file"].as_str().unwrap());
    let segments: Vec<_> = segments.collect();
    host.ok("audit verify");
    host.ok(&format!(
        "audit verify --checkpoint {heads} --archive {}",
        segments.join(" ")
    ));

    // Another host sees the same, and who changes a record there is found.
    let keys = ["audit.key", "vaults/myvault/master.key"];
    let other = joined(&host, &url, &keys);
    assert_eq!(
        lines(&other, "audit verify --vault myvault")[0]["records"],
        lines(&host, "audit verify --vault myvault")[0]["records"]
    );
    let schema = url.rsplit_once("%3D").unwrap().1;
    server.sql(&format!(
        "UPDATE {schema}.audit SET caller = 'mallory' WHERE seq = (SELECT max(seq) FROM {schema}.audit)"
    ));
    for host in [&host, &other] {
        let found = host.run("audit verify -o json");
        assert_eq!(found.status.code(), Some(1), "{found:?}");
        let error: Value = serde_json::from_slice(&found.stderr).unwrap();
        assert_eq!(error["code"], "AuditLogTampered");
    }
}

#[test]
fn a_host_uses_vaults_once_it_has_their_master_keys() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let (host, url) = on_server(server);
    make_set(&host);
    let output = host.run("disk create d --size 1MiB");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("each other host"), "{said}");
    let other = joined(&host, &url, &["audit.key"]);
    let create = "disk create e --size 1MiB --disk-encryption-set s";
    let refused = other.refused_with("VaultMasterKey", create);
    let file = other.state().join("vaults/myvault/master.key");
    assert!(refused.contains(text(&file)), "{refused}");
    let said = String::from_utf8(other.run("doctor -o json").stdout).unwrap();
    assert!(said.contains("has not got the master key"), "{said}");
    // In a file that all hosts have at one path.
    let shared = host.file("master.key");
    host.ok(&format!(
        "keyvault reseal myvault --master-key-file {shared}"
    ));
    other.ok(create);
    other.ok("keyvault key rotate k --vault-name myvault");
    host.ok("disk decrypt e");
    other.refused_with("VaultMasterKey", "disk create f --size 1MiB");
    assert_eq!(names(&other, "disk"), ["d", "e"]);
    host.ok("audit verify");
}

/// What dies in the middle of it leaves no vault that is half there, and nothing that is in anybody's way.
#[test]
fn a_vault_whose_making_is_killed_is_whole_or_not_there() {
    let Some(server) = PostgresServer::shared() else {
        return;
    };
    let (host, _) = on_server(server);
    host.ok("keyvault connect far --url https://far.vault.localhost:8443");
    for round in 0..12 {
        let name = format!("killed{round}");
        let mut create = host.command(&format!("keyvault create {name}"));
        let create = create
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let mut create = create.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(40 * round));
        create.kill().unwrap();
        create.wait().unwrap();
        if names(&host, "keyvault").contains(&name) {
            host.ok(&format!("keyvault show {name}"));
        } else {
            host.ok(&format!("keyvault create {name}"));
        }
        host.ok(&format!(
            "keyvault key create k --vault-name {name} --size 2048"
        ));
    }
    // Whoever makes the next one ends what is left of the last.
    host.ok("keyvault create last");
    assert_eq!(names(&host, "keyvault").len(), 14);
    // A schema's name begins with that of its installation, in 21 bytes.
    let left = server.sql(
        "SELECT count(*) FROM pg_namespace WHERE nspname LIKE '%making%' AND left(nspname, 21) IN \
         (SELECT left(nspname, 21) FROM pg_namespace WHERE nspname LIKE 'sealdisk%vault_killed0')",
    );
    assert_eq!(left, "0");
    let mut dirs: Vec<_> = fs::read_dir(host.state().join("vaults"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    dirs.retain(|name| name.starts_with('.'));
    assert_eq!(dirs, [".lock"]);
}
