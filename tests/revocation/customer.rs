//! A customer: a vault, a key in it, a disk encryption set, and a disk under it.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use installation::Installation;
use serde_json::Value;

use crate::frontend::PATIENCE;
use crate::frontend::daemon::{AttachOptions, Daemon, Disk, expect_success};

/// What the last successful request may be behind a refusal: an interval (1 s here, the shortest that there
/// is) and a second, and what a loaded machine adds.
pub const BOUND: Duration = Duration::from_secs(4);

pub const FAIL: &[&str] = &["--key-check-interval", "1s", "--on-revoke", "error"];
pub const PAUSE: &[&str] = &["--key-check-interval", "1s", "--on-revoke", "pause"];

const DISK: &str = "disk";
const VAULT: &str = "customer";
const KEY: &str = "key";
const SET: &str = "set";

pub struct Customer {
    pub disk: Disk,
}

impl Customer {
    /// As the documented workflow has it: key, set, grant, disk.
    pub fn new(size: u64) -> Self {
        Self::of(Disk::new(size))
    }

    /// As [`Customer::new`], with a disk that is there already.
    pub fn of(disk: Disk) -> Self {
        let customer = Self { disk };
        customer.run(&["keyvault", "create", VAULT]);
        let key = ["keyvault", "key", "create", KEY, "--vault-name", VAULT];
        customer.run(&[&key[..], &["--size", "2048"]].concat());
        let url = format!("https://{VAULT}.vault.localhost/keys/{KEY}");
        customer.run(&["disk-encryption-set", "create", SET, "--key-url", &url]);
        customer.grant();
        customer.run(&["disk", "update", DISK, "--disk-encryption-set", SET]);
        customer
    }

    /// Runs a command that has to succeed; its stdout.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = expect_success(&mut self.disk.command(arguments));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Object id of the set's identity.
    pub fn identity(&self) -> String {
        let set = self.run(&["disk-encryption-set", "show", SET, "-o", "json"]);
        let set: Value = serde_json::from_str(&set).unwrap();
        set["identity"]["principalId"].as_str().unwrap().to_owned()
    }

    /// Lets the set's identity use the vault's keys.
    pub fn grant(&self) {
        let identity = self.identity();
        let policy = ["keyvault", "set-policy", VAULT, "--object-id", &identity];
        let permissions = ["--key-permissions", "get", "wrapKey", "unwrapKey"];
        self.run(&[&policy[..], &permissions].concat());
    }

    /// Takes that back.
    pub fn revoke_policy(&self) {
        let identity = self.identity();
        self.run(&["keyvault", "delete-policy", VAULT, "--object-id", &identity]);
    }

    /// `keyvault key set-attributes` on the key.
    pub fn set_key(&self, attribute: &[&str]) {
        let key = [
            "keyvault",
            "key",
            "set-attributes",
            KEY,
            "--vault-name",
            VAULT,
        ];
        self.run(&[&key[..], attribute].concat());
    }

    pub fn enable(&self, enabled: bool) {
        self.set_key(&["--enabled", if enabled { "true" } else { "false" }]);
    }

    /// `keyvault key delete`, or `recover`.
    pub fn key(&self, what: &str) {
        self.run(&["keyvault", "key", what, KEY, "--vault-name", VAULT]);
    }

    /// Deletes a deleted key for good.
    pub fn purge_key(&self) {
        let key = ["keyvault", "key", "purge", KEY, "--vault-name", VAULT];
        self.run(&[&key[..], &["--yes"]].concat());
    }

    /// The vault's directory.
    pub fn vault(&self) -> PathBuf {
        self.disk.state_dir().join("vaults").join(VAULT)
    }

    /// Moves the vault away, so that it cannot be reached.
    pub fn hide_vault(&self) {
        fs::rename(self.vault(), self.disk.state_dir().join("hidden")).unwrap();
    }

    /// Brings it back.
    pub fn show_vault(&self) {
        fs::rename(self.disk.state_dir().join("hidden"), self.vault()).unwrap();
    }

    pub fn attach(&self, arguments: &'static [&'static str]) -> Daemon {
        self.disk.attach(&AttachOptions {
            arguments,
            ..AttachOptions::default()
        })
    }

    /// The disk's DEK, unwrapped in the set's name, which must be allowed.
    pub fn dek(&self) -> Vec<u8> {
        let installation = Installation::open(self.disk.state_dir()).unwrap();
        let disk = disks::Disk::find(&installation, DISK).unwrap();
        let header = disk.header_file().unwrap().read().unwrap();
        let (_, dek) = disk.unlock(&installation, header).unwrap();
        dek.expose().to_vec()
    }

    /// What `disk show` says.
    pub fn show(&self) -> Value {
        serde_json::from_str(&self.run(&["disk", "show", DISK, "-o", "json"])).unwrap()
    }

    /// Waits until `disk show` says that the key's state and the DEK's are these; what it says then.
    pub fn wait_for(&self, state: &str, dek: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let access = self.show()["keyAccess"].take();
            if access["state"] == state && access["dek"] == dek {
                return access;
            }
            assert!(
                Instant::now() < end,
                "not {state} with the DEK {dek} but {access}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the key is revoked and the DEK destroyed.
    pub fn wait_stopped(&self) -> Value {
        self.wait_for("KeyRevoked", "Destroyed")
    }

    /// Waits until the disk is served.
    pub fn wait_served(&self) -> Value {
        self.wait_for("Active", "Held")
    }

    /// The events so far, by name.
    pub fn events(&self) -> Vec<String> {
        self.run(&["disk", "events", DISK])
            .lines()
            .map(|line| {
                let event: Value = serde_json::from_str(line).unwrap();
                event["event"].as_str().unwrap().to_owned()
            })
            .collect()
    }
}
