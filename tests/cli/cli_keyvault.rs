//! Key vaults, keys and disk encryption sets through the real command, as an operator uses it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rsa::pkcs1::EncodeRsaPrivateKey;
use rsa::pkcs8::{EncodePrivateKey, LineEnding};
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use serde_json::Value;
use test_support::{Host, files_below, one_line, program};

/// An installation with the vault `myvault` and in it the key `mykey`.
fn host_with_key() -> Host {
    let host = Host::new();
    host.ok("keyvault create myvault");
    host.ok("keyvault key create mykey --vault-name myvault --kty RSA --size 2048");
    host
}

/// The message of a command that is to be refused with `code`; the same in one line as text.
fn refused(host: &Host, line: &str, code: &str) -> String {
    let output = host.run(&format!("{line} -o json"));
    assert_eq!(output.status.code(), Some(1), "{line}: {output:?}");
    assert!(output.stdout.is_empty(), "{line}: {output:?}");
    let text = host.run(line);
    assert_eq!(text.status.code(), Some(1));
    let text = one_line(&text);
    assert!(text.starts_with("error: "), "{text}");
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["code"], code, "{line}: {error}");
    error["message"].as_str().unwrap().into()
}

fn principal(host: &Host, set: &str) -> String {
    let set = host.json(&format!("disk-encryption-set show {set}"));
    set["identity"]["principalId"].as_str().unwrap().into()
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn the_workflow_from_vault_to_revocation() {
    let host = host_with_key();
    let vault = host.json("keyvault show myvault");
    let uri = string(&vault["properties"]["vaultUri"]);
    assert_eq!(uri, "https://myvault.vault.localhost");
    let key = host.json("keyvault key show mykey --vault-name myvault");
    let kid = string(&key["key"]["kid"]);
    assert!(kid.starts_with(&format!("{uri}/keys/mykey/")), "{kid}");
    assert_eq!(key["key"]["kty"], "RSA");
    assert_eq!(key["attributes"]["enabled"], true);

    let create = format!(
        "disk-encryption-set create myset --key-url {uri}/keys/mykey --source-vault myvault"
    );
    let set = host.json(&create);
    assert_eq!(set["identity"]["type"], "SystemAssigned");
    assert_eq!(set["activeKey"]["keyUrl"], format!("{uri}/keys/mykey"));
    assert_eq!(set["rotationToLatestKeyVersionEnabled"], false);
    let id = principal(&host, "myset");

    // The refusal gives the very command that helps.
    let disk = "disk create d --size 1MiB --disk-encryption-set myset";
    let message = refused(&host, disk, "Forbidden");
    let command = message.split('`').nth(1).unwrap();
    let command = command.strip_prefix("sealdisk ").unwrap();
    assert!(command.contains(&id), "{message}");
    host.json(command);
    host.json(disk);

    host.json("keyvault key set-attributes mykey --vault-name myvault --enabled false");
    let other = "disk create e --size 1MiB --disk-encryption-set myset";
    let message = refused(&host, other, "KeyDisabled");
    let command = message.split('`').nth(1).unwrap();
    host.json(command.strip_prefix("sealdisk ").unwrap());
    host.json(other);

    host.json(&format!("keyvault delete-policy myvault --object-id {id}"));
    refused(&host, "disk decrypt d --output-file /dev/null", "Forbidden");
    refused(
        &host,
        &format!("keyvault delete-policy myvault --object-id {id}"),
        "PolicyNotFound",
    );
    let log = host.json("keyvault audit-log myvault");
    let refusals: Vec<(&str, &str)> = log
        .as_array()
        .unwrap()
        .iter()
        .filter(|record| record["outcome"] == "refused" && record["caller"] == id.as_str())
        .map(|record| (string(&record["operation"]), string(&record["code"])))
        .collect();
    for expected in [
        ("KeyGet", "Forbidden"),
        ("KeyWrap", "KeyDisabled"),
        ("KeyUnwrap", "Forbidden"),
    ] {
        assert!(refusals.contains(&expected), "{expected:?} in {refusals:?}");
    }
}

#[test]
fn a_sets_disks_follow_its_key() {
    let host = host_with_key();
    let url = "https://myvault.vault.localhost/keys/mykey";
    host.json(&format!("disk-encryption-set create myset --key-url {url}"));
    let id = principal(&host, "myset");
    let grant = "--key-permissions get wrapKey unwrapKey";
    host.json(&format!(
        "keyvault set-policy myvault --object-id {id} {grant}"
    ));
    host.json("disk create d --size 1MiB --disk-encryption-set myset");
    let wrapped_by = || string(&host.json("disk show d")["encryption"]["keyUrl"]).to_owned();
    let first = wrapped_by();

    let second = host.json("keyvault key create mykey --vault-name myvault --size 2048");
    assert_eq!(wrapped_by(), first, "a new version alone changes nothing");
    host.json("disk-encryption-set update myset --enable-auto-key-rotation");
    assert_eq!(wrapped_by(), string(&second["key"]["kid"]));

    // The first version can go now.
    let version = first.rsplit('/').next().unwrap();
    host.json(&format!(
        "keyvault key set-attributes mykey --vault-name myvault --version {version} --enabled false"
    ));
    host.json("disk decrypt d --output-file /dev/null");

    host.json("keyvault key create other --vault-name myvault --size 2048");
    let set = host.json(
        "disk-encryption-set update myset --key-url https://myvault.vault.localhost/keys/other",
    );
    assert_eq!(set["previousKeys"][0]["keyUrl"], second["key"]["kid"]);
    assert!(wrapped_by().contains("/keys/other/"));
    host.json("disk decrypt d --output-file /dev/null");
    refused(
        &host,
        "disk-encryption-set delete myset --yes",
        "InUseDiskEncryptionSetCannotBeDeleted",
    );
    host.json("disk delete d --yes");
    refused(
        &host,
        "disk-encryption-set delete myset",
        "ConfirmationRequired",
    );
    let deleted = host.run("disk-encryption-set delete myset --yes");
    assert!(deleted.status.success());
    let note = String::from_utf8(deleted.stderr).unwrap();
    let command = note
        .split("`sealdisk ")
        .nth(1)
        .unwrap()
        .split('`')
        .next()
        .unwrap();
    host.json(command);
    refused(&host, "disk-encryption-set show myset", "ResourceNotFound");
}

#[test]
fn keys_have_versions_attributes_and_are_listed() {
    let host = host_with_key();
    host.json("keyvault key create mykey --vault-name myvault --size 2048 --expires 2031-01-01");
    let versions = host.json("keyvault key list-versions mykey --vault-name myvault");
    assert_eq!(versions.as_array().unwrap().len(), 2);
    let keys = host.json("keyvault key list --vault-name myvault");
    assert_eq!(keys.as_array().unwrap().len(), 1);
    assert_eq!(keys[0], versions[1]);
    assert_eq!(keys[0]["attributes"]["expires"], "2031-01-01T00:00:00Z");
    let first = string(&versions[0]["version"]);
    let set = format!(
        "keyvault key set-attributes mykey --vault-name myvault --version {first} --not-before \
         2030-01-01T12:00Z"
    );
    let changed = host.json(&set);
    assert_eq!(changed["attributes"]["notBefore"], "2030-01-01T12:00:00Z");
    let table = host.run("keyvault key list-versions mykey --vault-name myvault");
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.lines().next().unwrap().contains("VERSION"), "{table}");
    assert_eq!(table.lines().count(), 3);

    // Each limit of time stops use.
    let url = "https://myvault.vault.localhost/keys/mykey";
    host.json(&format!(
        "disk-encryption-set create pinned --key-url {url}/{first}"
    ));
    host.json(&format!(
        "disk-encryption-set create latest --key-url {url}"
    ));
    for set in ["pinned", "latest"] {
        let id = principal(&host, set);
        let grant = "--key-permissions get wrapKey unwrapKey";
        host.json(&format!(
            "keyvault set-policy myvault --object-id {id} {grant}"
        ));
    }
    refused(
        &host,
        "disk create d --size 1MiB --disk-encryption-set pinned",
        "KeyNotYetValid",
    );
    host.json("keyvault key set-attributes mykey --vault-name myvault --expires 2020-01-01");
    refused(
        &host,
        "disk create d --size 1MiB --disk-encryption-set latest",
        "KeyExpired",
    );
    assert_eq!(host.json("disk list"), Value::Array(Vec::new()));
}

#[test]
fn private_keys_are_imported_and_never_kept_in_the_clear() {
    let host = host_with_key();
    let key = rsa::PrivateKey::new(&mut getrandom::SysRng, 2048).unwrap();
    fs::write(
        host.file("8.pem"),
        key.to_pkcs8_pem(LineEnding::LF).unwrap(),
    )
    .unwrap();
    fs::write(
        host.file("1.pem"),
        key.to_pkcs1_pem(LineEnding::CRLF).unwrap(),
    )
    .unwrap();
    for pem in ["8.pem", "1.pem"] {
        let import = "keyvault key import theirs --vault-name myvault --pem-file";
        let bundle = host.json(&format!("{import} {}", host.file(pem)));
        assert_eq!(bundle["key"]["n"], base64url(&key.n_bytes()));
        assert_eq!(bundle["key"]["e"], "AQAB");
    }
    let versions = host.json("keyvault key list-versions theirs --vault-name myvault");
    assert_eq!(versions.as_array().unwrap().len(), 2);
    let prime = key.primes()[0].to_be_bytes();
    let secret = [prime[..24].to_vec(), base64url(&prime[..24]).into_bytes()];
    for file in files_below(&host.state()) {
        let bytes = fs::read(&file).unwrap();
        for secret in &secret {
            let found = bytes.windows(secret.len()).any(|w| w == secret);
            assert!(!found, "the private key is in {}", file.display());
        }
    }

    let import =
        |pem: &str| format!("keyvault key import bad --vault-name myvault --pem-file {pem}");
    let pem = key.to_pkcs8_pem(LineEnding::LF).unwrap();
    let bad = [
        (
            "encrypted",
            pem.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
            "password",
        ),
        (
            "certificate",
            pem.replace("PRIVATE KEY", "CERTIFICATE"),
            "'CERTIFICATE'",
        ),
        ("cut", pem[..pem.len() / 2].to_owned(), "malformed"),
        ("text", "hello".to_owned(), "no PEM file"),
        ("long", "x".repeat(100_000), "too long"),
    ];
    for (name, content, why) in bad {
        fs::write(host.file(name), content).unwrap();
        let message = refused(&host, &import(&host.file(name)), "BadParameter");
        assert!(message.contains(why), "{message}");
    }
    refused(&host, &import(&host.file("missing.pem")), "BadParameter");
    refused(
        &host,
        "keyvault key show bad --vault-name myvault",
        "KeyNotFound",
    );
}

#[test]
fn bad_arguments_are_refused_and_change_nothing() {
    let host = host_with_key();
    let url = "https://myvault.vault.localhost/keys/mykey";
    let refusals = [
        ("keyvault create myvault", "Conflict"),
        ("keyvault create MyVault", "Conflict"),
        ("keyvault create ../x", "BadParameter"),
        ("keyvault create platform", "BadParameter"),
        ("keyvault show other", "VaultNotFound"),
        ("keyvault key list --vault-name other", "VaultNotFound"),
        (
            "keyvault key create a_b --vault-name myvault --size 2048",
            "BadParameter",
        ),
        (
            "keyvault key create k --vault-name myvault --size 1024",
            "BadParameter",
        ),
        (
            "keyvault key show other --vault-name myvault",
            "KeyNotFound",
        ),
        (
            "keyvault key list-versions other --vault-name myvault",
            "KeyNotFound",
        ),
        (
            "keyvault key show mykey --vault-name myvault --version 12",
            "KeyNotFound",
        ),
        (
            "keyvault set-policy myvault --object-id 00000000-0000-0000-0000-000000000001 \
             --key-permissions get fly",
            "BadParameter",
        ),
        ("disk-encryption-set show other", "ResourceNotFound"),
        (
            "disk-encryption-set create s --key-url mykey",
            "BadParameter",
        ),
        (
            "disk-encryption-set create s --key-url https://v.vault.azure.net/keys/k",
            "VaultNotFound",
        ),
        (
            "disk-encryption-set create s --key-url https://other.vault.localhost/keys/k",
            "VaultNotFound",
        ),
    ];
    for (line, code) in refusals {
        refused(&host, line, code);
    }
    refused(
        &host,
        &format!("disk-encryption-set create s/t --key-url {url}"),
        "BadParameter",
    );
    refused(
        &host,
        &format!("disk-encryption-set create s --key-url {url}x"),
        "KeyNotFound",
    );
    let elsewhere = format!("disk-encryption-set create s --key-url {url} --source-vault other");
    refused(&host, &elsewhere, "BadParameter");
    host.json(&format!("disk-encryption-set create s --key-url {url}"));
    refused(
        &host,
        &format!("disk-encryption-set create s --key-url {url}"),
        "Conflict",
    );
    host.json("keyvault key set-attributes mykey --vault-name myvault --enabled false");
    refused(
        &host,
        &format!("disk-encryption-set create t --key-url {url}"),
        "KeyDisabled",
    );

    for line in [
        "keyvault bogus",
        "keyvault key set-attributes mykey --vault-name myvault",
        "keyvault key set-attributes mykey --vault-name myvault --expires tomorrow",
        "keyvault key set-attributes mykey --vault-name myvault --enabled maybe",
        "disk-encryption-set update s",
    ] {
        let output = host.run(&format!("{line} -o json"));
        assert_eq!(output.status.code(), Some(2), "{line}: {output:?}");
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(error["code"], "InvalidArgument", "{line}");
    }
    let vaults = host.json("keyvault list");
    assert_eq!(vaults.as_array().unwrap().len(), 1);
    assert_eq!(
        host.json("disk-encryption-set list")
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn exposed_foreign_and_swapped_files_are_refused_and_left_as_they_are() {
    let host = host_with_key();
    let master = host.state().join("vaults/myvault/master.key");
    fs::set_permissions(&master, fs::Permissions::from_mode(0o644)).unwrap();
    let message = refused(&host, "keyvault show myvault", "VaultMasterKey");
    assert!(message.contains("chmod 600"), "{message}");
    fs::set_permissions(&master, fs::Permissions::from_mode(0o600)).unwrap();
    host.json("keyvault show myvault");
    fs::write(&master, [7; 32]).unwrap();
    refused(&host, "keyvault show myvault", "VaultMasterKey");

    let host = Host::new();
    fs::create_dir(host.state()).unwrap();
    let catalog = host.state().join("catalog.db");
    fs::write(&catalog, [b'x'; 8192]).unwrap();
    refused(&host, "keyvault list", "CatalogError");
    assert_eq!(fs::read(&catalog).unwrap(), [b'x'; 8192]);
    fs::remove_file(&catalog).unwrap();
    fs::set_permissions(host.state(), fs::Permissions::from_mode(0o777)).unwrap();
    refused(&host, "keyvault list", "StateDirectory");
}

#[test]
fn a_master_key_can_come_from_a_systemd_credential() {
    let host = Host::new();
    let credential = host.path("sealdisk-vault-myvault");
    fs::write(&credential, [5; 32]).unwrap();
    let run = |line: &str| {
        let mut command = host.command(line);
        command.env("CREDENTIALS_DIRECTORY", host.path(""));
        command.output().unwrap()
    };
    assert!(run("keyvault create myvault").status.success());
    assert!(!host.state().join("vaults/myvault/master.key").exists());
    assert!(run("keyvault show myvault").status.success());
    refused(&host, "keyvault show myvault", "VaultMasterKey");
    fs::write(&credential, [6; 32]).unwrap();
    assert!(!run("keyvault show myvault").status.success());
}

#[test]
fn files_are_private_whatever_the_umask() {
    let host = Host::new();
    let script = r#"umask 0; "$0" keyvault create myvault && "$0" keyvault key create k --vault-name myvault --size 2048"#;
    let status = Command::new("sh")
        .args(["-c", script, program().to_str().unwrap()])
        .env("SEALDISK_STATE_DIR", host.state())
        .env_remove("CREDENTIALS_DIRECTORY")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    for path in files_below(&host.state()) {
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
    }
    for dir in ["", "vaults", "vaults/myvault", "disks"] {
        let mode = fs::metadata(host.state().join(dir)).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o700, "{dir}");
    }
}

#[test]
fn processes_that_need_the_platform_key_first_at_the_same_time_share_one() {
    let host = Host::new();
    let children: Vec<_> = (0..3)
        .map(|n| {
            let mut command = host.command(&format!("disk create disk{n} --size 1MiB"));
            command.stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let versions = host.json("keyvault key list-versions platform-key --vault-name platform");
    assert_eq!(versions.as_array().unwrap().len(), 1);
    let disks = host.json("disk list");
    assert_eq!(disks.as_array().unwrap().len(), 3);
}

#[test]
fn a_kill_while_the_platform_vault_is_made_leaves_it_makeable() {
    // From before the state directory exists to after the disk is complete.
    for delay in [0, 3, 6, 10, 15, 25, 40, 80, 160, 400] {
        let host = Host::new();
        let mut command = host.command("disk create first --size 1MiB");
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        host.json("disk create second --size 1MiB");
        host.json("disk decrypt second --output-file /dev/null");
        let versions = host.json("keyvault key list-versions platform-key --vault-name platform");
        assert_eq!(versions.as_array().unwrap().len(), 1, "after {delay} ms");
        let left: Vec<_> = fs::read_dir(host.state().join("vaults"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name != "platform" && name != ".lock")
            .collect();
        assert!(left.is_empty(), "{left:?} after {delay} ms");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let host = host_with_key();
    for line in ["completions bash", "keyvault audit-log myvault", "--help"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = host.command(line).stdout(writer).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        assert!(output.stderr.is_empty(), "{line}: {output:?}");
    }
}

#[test]
fn a_process_that_holds_keys_cannot_dump_core() {
    let host = host_with_key();
    let mut command = host.command("keyvault key import k --vault-name myvault --pem-file -");
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let limits = format!("/proc/{}/limits", child.id());
    let forbidden = |limits: &str| {
        let line = limits.lines().find(|l| l.starts_with("Max core file size"));
        line.is_some_and(|l| l.split_whitespace().skip(4).take(2).eq(["0", "0"]))
    };
    // It is waiting for its input once the vault is open; the limit is set before.
    let seen = (0..500).any(|_| {
        sleep(Duration::from_millis(10));
        forbidden(&fs::read_to_string(&limits).unwrap())
    });
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(seen);
}

#[test]
fn completions_and_capabilities_need_no_installation() {
    let host = Host::new();
    for shell in ["bash", "zsh", "fish"] {
        let output = host.run(&format!("completions {shell}"));
        assert!(output.status.success());
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains("disk-encryption-set"), "{shell}");
    }
    for line in [
        "--print-capabilities",
        "attach --print-capabilities",
        "attach mydisk --fd 7 --socket-path x --unknown --print-capabilities",
    ] {
        let output = host.run(line);
        assert!(output.status.success(), "{line}: {output:?}");
        let capabilities: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(capabilities["type"], "block");
    }
    assert!(!host.state().exists());
}

fn base64url(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

#[test]
fn arguments_that_make_no_sense_are_explained_in_one_clear_line() {
    let host = Host::new();
    let said = |line: &str, option: Option<&str>| {
        let mut command = host.command(line);
        let output = command.args(option).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    };
    // The options that the environment gives are none that are required.
    let usage = said("attach", None);
    assert!(usage.contains("usage: sealdisk attach "), "{usage}");
    assert!(!usage.contains("--state-dir"), "{usage}");
    let policy = "keyvault set-policy myvault --key-permissions get --object-id";
    for id in ["", "me"] {
        let wrong = said(policy, Some(id));
        assert!(wrong.contains("give the principalId"), "{wrong}");
    }
}

#[test]
fn a_key_url_is_taken_in_any_case() {
    let host = host_with_key();
    let url = "HTTPS://MyVault.Vault.Localhost/Keys/MyKey";
    let set = host.json(&format!("disk-encryption-set create s --key-url {url}"));
    let taken = set["activeKey"]["keyUrl"].as_str().unwrap();
    assert!(
        taken.starts_with("https://myvault.vault.localhost/keys/"),
        "{taken}"
    );
}
