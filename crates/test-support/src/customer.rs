//! A customer: a vault, a key in it, a disk encryption set, and a disk under it.

use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{AttachOptions, Daemon, Disk, PATIENCE};

/// A disk whose key its customer holds in a vault of their own. What a [`Disk`] can do it can too.
pub struct Customer {
    /// The disk, with the installation that it is in.
    pub disk: Disk,
}

impl Deref for Customer {
    type Target = Disk;

    fn deref(&self) -> &Disk {
        &self.disk
    }
}

impl Customer {
    /// The vault.
    pub const VAULT: &str = "customer";
    /// The key in it.
    pub const KEY: &str = "key";
    /// The set.
    pub const SET: &str = "set";

    /// As the documented workflow has it: key, set, grant, disk.
    pub fn new(size: u64) -> Self {
        Self::of(Disk::new(size))
    }

    /// As [`Customer::new`], with a disk that is there already.
    pub fn of(disk: Disk) -> Self {
        let customer = Self { disk };
        customer.ok(&["keyvault", "create", Self::VAULT]);
        customer.with_disk_under_the_key()
    }

    /// When there is a vault: key, set, grant, and the disk under it.
    pub fn with_disk_under_the_key(self) -> Self {
        self.create_key();
        let identity = self.create_set();
        self.grant_to(&identity);
        self.use_key();
        self
    }

    /// Makes the key, or a new version of it.
    pub fn create_key(&self) -> Value {
        let create = ["keyvault", "key", "create", Self::KEY, "--size", "2048"];
        self.json(&[&create[..], &["--vault-name", Self::VAULT]].concat())
    }

    /// What names the key in its newest version.
    pub fn key_url() -> String {
        format!("https://{}.vault.localhost/keys/{}", Self::VAULT, Self::KEY)
    }

    /// Makes the set; the object id of its identity.
    pub fn create_set(&self) -> String {
        let url = Self::key_url();
        let create = ["disk-encryption-set", "create", Self::SET, "--key-url"];
        self.ok(&[&create[..], &[&url]].concat());
        self.identity()
    }

    /// Has the disk use the set.
    pub fn use_key(&self) {
        let set = Self::SET;
        self.ok(&["disk", "update", "disk", "--disk-encryption-set", set]);
    }

    /// The URL of the version of a key under which the disk is.
    pub fn wrapping_key(&self) -> String {
        let disk = self.show();
        let url = disk["encryption"]["keyUrl"].as_str();
        url.unwrap_or_else(|| panic!("{disk}")).to_owned()
    }

    /// Object id of the set's identity.
    pub fn identity(&self) -> String {
        let set = self.json(&["disk-encryption-set", "show", Self::SET]);
        set["identity"]["principalId"].as_str().unwrap().to_owned()
    }

    /// Lets the set's identity use the vault's keys.
    pub fn grant(&self) {
        self.grant_to(&self.identity());
    }

    /// Lets an identity use the vault's keys.
    pub fn grant_to(&self, identity: &str) {
        let policy = ["keyvault", "set-policy", Self::VAULT];
        let permissions = ["--key-permissions", "get", "wrapKey", "unwrapKey"];
        self.ok(&[&policy[..], &["--object-id", identity], &permissions].concat());
    }

    /// Takes that back.
    pub fn revoke_policy(&self) {
        let (vault, identity) = (Self::VAULT, self.identity());
        self.ok(&["keyvault", "delete-policy", vault, "--object-id", &identity]);
    }

    /// `keyvault key set-attributes` on the key.
    pub fn set_key(&self, attribute: &[&str]) {
        let change = ["keyvault", "key", "set-attributes", Self::KEY];
        self.ok(&[&change[..], &["--vault-name", Self::VAULT], attribute].concat());
    }

    /// Enables the key, or disables it.
    pub fn enable(&self, enabled: bool) {
        self.set_key(&["--enabled", if enabled { "true" } else { "false" }]);
    }

    /// `keyvault key delete`, or `recover`.
    pub fn key(&self, what: &str) {
        self.ok(&[
            "keyvault",
            "key",
            what,
            Self::KEY,
            "--vault-name",
            Self::VAULT,
        ]);
    }

    /// Deletes a deleted key for good.
    pub fn purge_key(&self) {
        let purge = ["keyvault", "key", "purge", Self::KEY, "--yes"];
        self.ok(&[&purge[..], &["--vault-name", Self::VAULT]].concat());
    }

    /// The vault's directory.
    pub fn vault(&self) -> PathBuf {
        self.state().join("vaults").join(Self::VAULT)
    }

    /// Moves the vault away, so that it cannot be reached.
    pub fn hide_vault(&self) {
        fs::rename(self.vault(), self.state().join("hidden")).unwrap();
    }

    /// Brings it back.
    pub fn show_vault(&self) {
        fs::rename(self.state().join("hidden"), self.vault()).unwrap();
    }

    /// Attaches the disk with arguments.
    pub fn attach(&self, arguments: &'static [&'static str]) -> Daemon {
        self.disk.attach(&AttachOptions {
            arguments,
            ..AttachOptions::default()
        })
    }

    /// The disk's DEK, unwrapped in the set's name, which must be allowed.
    pub fn dek(&self) -> Vec<u8> {
        let installation = self.installation();
        let disk = disks::Disk::find(&installation, "disk").unwrap();
        let header = disk.header_file().unwrap().read().unwrap();
        let (_, dek) = disk.unlock(&installation, header).unwrap();
        dek.expose().to_vec()
    }

    /// What `disk show` says.
    pub fn show(&self) -> Value {
        self.json(&["disk", "show", "disk"])
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
        let events = self.text(&["disk", "events", "disk"]);
        let name = |line: &str| {
            let event: Value = serde_json::from_str(line).unwrap();
            event["event"].as_str().unwrap().to_owned()
        };
        events.lines().map(name).collect()
    }
}
