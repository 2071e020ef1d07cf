//! An installation with one vault, and shorter ways to work on it.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use test_support::Host;

pub const IN_VAULT: &str = "--vault-name myvault";

/// An installation of its own with the vault `myvault`.
pub fn host_with_vault() -> Host {
    let host = Host::new();
    host.ok("keyvault create myvault --retention-days 7");
    host
}

/// Shorter ways to work on that vault.
pub trait MyVault {
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

pub fn json_lines(text: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(text).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
