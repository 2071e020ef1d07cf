//! A host whose commands are lines, and processes that end with their test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use disks::des::NewDes;
use disks::import::Cancel;
use disks::{CreateRequest, DEFAULT_SECTOR_SIZE, create};
use installation::catalog::EncryptionType;
use serde_json::Value;
use test_support::{Host, program};
use vault::{KeySize, NewKey, Permissions, VaultSettings};

/// Runs the words of a line.
pub trait Lines {
    fn line(&self, line: &str) -> Output;
    /// The JSON that a command prints that is to succeed.
    fn good(&self, line: &str) -> Value;
    /// The message of a command that is to be refused with `code`.
    fn bad(&self, line: &str, code: &str) -> String;
}

impl Lines for Host {
    fn line(&self, line: &str) -> Output {
        // A line may name another state directory than the host's.
        let mut words = line.split_whitespace();
        let mut command = match line.starts_with("--state-dir ") {
            true => Command::new(program()),
            false => self.command(&[words.next().unwrap()]),
        };
        command.args(words).stdin(Stdio::null());
        command.env_remove("RUST_LOG");
        command.env_remove("CREDENTIALS_DIRECTORY");
        command.env("SEALDISK_RUNTIME_DIR", self.path("run"));
        command.output().unwrap()
    }

    fn good(&self, line: &str) -> Value {
        let output = self.line(&format!("{line} -o json"));
        assert!(output.status.success(), "{line}: {output:?}");
        // `audit` prints an object in each line.
        let mut values = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
        values.next().map_or(Value::Null, Result::unwrap)
    }

    fn bad(&self, line: &str, code: &str) -> String {
        let output = self.line(&format!("{line} -o json"));
        assert!(!output.status.success(), "{line}: {output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        let last = text.lines().last().unwrap();
        let error: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(error["code"], code, "{line}: {text}");
        error["message"].as_str().unwrap().into()
    }
}

/// A host with the vault `vlt`, its key `k`, the set `s` that may use it, and the disk `d` under it that
/// holds `text`. All that is made in this process: each one of the program's takes a tenth of a second to
/// seed its random generator.
pub fn host_with_disk(text: &[u8]) -> Host {
    let host = Host::new();
    let installation = host.installation();
    let operator = installation.operator();
    let vault = installation
        .create_vault("vlt", &VaultSettings::default())
        .unwrap();
    let key = NewKey::new(KeySize::Rsa2048);
    vault.create_key(&operator, "k", &key).unwrap();
    let set = NewDes {
        name: "s",
        key_url: "https://vlt.vault.localhost/keys/k",
        source_vault: None,
        encryption_type: EncryptionType::default(),
        auto_rotation: false,
        identity: None,
    };
    let set = disks::des::create(&installation, &set).unwrap();
    vault
        .set_policy(&operator, set.principal_id, &Permissions::for_disks())
        .unwrap();
    let request = CreateRequest {
        name: "d".into(),
        size: Some(1 << 20),
        source: None,
        disk_encryption_set: Some("s".into()),
        sector_size: DEFAULT_SECTOR_SIZE,
        logical_sector_size: None,
        data_dir: None,
    };
    create(&installation, &request, &Cancel::default(), |_| |_| ()).unwrap();
    let mut block = vec![0; 4096];
    block[..text.len()].copy_from_slice(text);
    host.write("d", 0, &block);
    host
}

pub fn grant(host: &Host, vault: &str, set: &str) {
    let installation = host.installation();
    let set = installation.catalog().des(set).unwrap();
    installation
        .vault(vault)
        .unwrap()
        .set_policy(
            &installation.operator(),
            set.record.principal_id,
            &Permissions::for_disks(),
        )
        .unwrap();
}

pub fn principal(host: &Host, set: &str) -> String {
    let set = host.installation().catalog().des(set).unwrap();
    set.record.principal_id.to_string()
}

/// What the disk `d` holds at its beginning.
pub fn content(host: &Host, length: usize) -> Vec<u8> {
    let mut block = host.read("d", 0, 4096);
    block.truncate(length);
    block
}

/// Kills a command at `count` moments of its run, which takes as long as the first one did, and has each
/// looked at.
pub fn killed(count: u32, command: impl Fn(u32) -> Command, mut look: impl FnMut(u32)) {
    let quiet = |n| {
        let mut command = command(n);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    let started = Instant::now();
    assert!(quiet(count).wait().unwrap().success());
    let whole = started.elapsed();
    look(count);
    for n in 0..count {
        let mut child = quiet(n);
        std::thread::sleep(whole * (2 * n + 1) / (2 * count));
        child.kill().unwrap();
        child.wait().unwrap();
        look(n);
    }
}

/// Moments at which a command is killed, by default and in a full test run.
pub const MOMENTS: u32 = 4;
pub const ALL_MOMENTS: u32 = 24;

/// A pair of age's keys: the file with the identity, and the recipient.
pub fn age_keys(host: &Host) -> (PathBuf, String) {
    let path = host.path("identity");
    if !path.exists() {
        let identity = age::x25519::Identity::generate();
        use age::secrecy::ExposeSecret;
        private(&path, identity.to_string().expose_secret().as_bytes());
        return (path, identity.to_public().to_string());
    }
    let text = fs::read_to_string(&path).unwrap();
    let identity: age::x25519::Identity = text.parse().unwrap();
    (path, identity.to_public().to_string())
}

pub fn private(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A program of the system, with what it prints.
pub fn tool(name: &str, arguments: &[&str]) -> Output {
    Command::new(name).args(arguments).output().unwrap()
}
