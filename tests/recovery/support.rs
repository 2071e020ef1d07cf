//! A host whose commands are lines, and processes that end with their test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::disk_support::Host;

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
            true => Command::new(env!("CARGO_BIN_EXE_sealdisk")),
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

/// A host with the vault `v`, its key `k`, the set `s` that may use it, and the disk `d` under it that
/// holds `text`.
pub fn host_with_disk(text: &[u8]) -> Host {
    let host = Host::new();
    host.good("keyvault create vlt");
    host.good("keyvault key create k --vault-name vlt --kty RSA --size 2048");
    host.good("disk-encryption-set create s --key-url https://vlt.vault.localhost/keys/k");
    grant(&host, "vlt", "s");
    host.good("disk create d --size 1MiB --disk-encryption-set s");
    let mut block = vec![0; 4096];
    block[..text.len()].copy_from_slice(text);
    host.write("d", 0, &block);
    host
}

pub fn grant(host: &Host, vault: &str, set: &str) {
    let id = principal(host, set);
    host.good(&format!(
        "keyvault set-policy {vault} --object-id {id} --key-permissions get wrapKey unwrapKey"
    ));
}

pub fn principal(host: &Host, set: &str) -> String {
    let set = host.good(&format!("disk-encryption-set show {set}"));
    set["identity"]["principalId"].as_str().unwrap().into()
}

/// What the disk `d` holds at its beginning.
pub fn content(host: &Host, length: usize) -> Vec<u8> {
    let output = host.line("disk decrypt d");
    assert!(output.status.success(), "{output:?}");
    output.stdout[..length].to_vec()
}

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

/// `keyvault serve`, ready.
pub struct Server(Child);

impl Server {
    pub fn start(host: &Host) -> Self {
        let mut command = host.command(&["keyvault", "serve", "--listen", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(!line.is_empty(), "the server did not start");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program of the system, with what it prints.
pub fn program(name: &str, arguments: &[&str]) -> Output {
    Command::new(name).args(arguments).output().unwrap()
}
