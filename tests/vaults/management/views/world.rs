//! An installation on which changes are made, by the API and by the command line.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::asked::{cause, passes_by, request, words};
use super::change::{By, Change, Key, Kind};
use super::model::{Cause, Model};
use crate::management::client::{Client, Managed};
use crate::management::vaults::{VAULT, ask_vault, policy, vault_with_key};
use installation::envelope::ResourceKind;

/// What takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct World {
    pub managed: Managed,
    /// Of whoever asks: a login would take longer than what is asked for.
    token: String,
    /// The versions of each key, the oldest first.
    versions: BTreeMap<Key, Vec<String>>,
}

impl World {
    /// With a vault, two keys in it, and the group in which the vault is.
    pub fn new() -> Self {
        let managed = Managed::new();
        let client = managed.client(&managed.admin);
        client.ok(
            "PUT ~/resourcegroups/rg",
            Some(&json!({"location": "local"})),
        );
        vault_with_key(&managed, &client, "kv1");
        let token = client.token.clone();
        let mut world = Self {
            managed,
            token,
            versions: BTreeMap::new(),
        };
        for key in Key::ALL {
            let line = format!(
                "keyvault key create {} --vault-name kv1 --size 2048",
                key.name()
            );
            let made = world.managed.host.json(&line);
            let version = made["key"]["kid"]
                .as_str()
                .unwrap()
                .rsplit('/')
                .next()
                .unwrap();
            world.versions.insert(key, vec![version.to_owned()]);
        }
        world
    }

    /// Takes away what the last sequence has left.
    pub fn clear(&mut self) {
        // A thousand sequences take longer than a token lives.
        let fresh = self.managed.client(&self.managed.admin).token;
        self.token = fresh;
        let client = self.client();
        for key in Key::ALL {
            self.enable(key, true, By::CommandLine);
        }
        for kind in Kind::ALL {
            for found in self
                .managed
                .host
                .json(&format!("{} list", kind.word()))
                .as_array()
                .unwrap()
            {
                let name = found["name"].as_str().unwrap();
                self.managed
                    .host
                    .ok(&format!("{} delete {name} --yes", kind.word()));
            }
        }
        for found in self
            .managed
            .host
            .json("disk-encryption-set list")
            .as_array()
            .unwrap()
        {
            let name = found["name"].as_str().unwrap();
            self.managed
                .host
                .ok(&format!("disk-encryption-set delete {name} --yes"));
        }
        for group in ["g", "h"] {
            client.ask(&format!("DELETE ~/resourceGroups/{group}"), None);
        }
        // Nothing is under older versions any more: to enable and disable all that there ever were would take most of the
        // time of a thousand sequences.
        for versions in self.versions.values_mut() {
            versions.drain(..versions.len() - 1);
        }
    }

    /// Makes a change; why it was refused.
    pub fn make(&mut self, model: &Model, change: &Change, by: By) -> Result<(), (Cause, String)> {
        let refused = match change {
            Change::Enable { key, on } => self.enable(*key, *on, by),
            Change::Rotate { key } => self.rotate(*key, by),
            Change::Grant { set, on } => self.grant(set, *on, by),
            _ => match by {
                By::Api => self.ask(model, change),
                By::CommandLine => self.command(change),
            },
        };
        if matches!(
            change,
            Change::Delete { .. } | Change::DeleteGroup { .. } | Change::Move { .. }
        ) {
            self.wait_for_merges();
        }
        match refused {
            None => Ok(()),
            Some(refused) => Err(refused),
        }
    }

    fn enable(&self, key: Key, on: bool, by: By) -> Option<(Cause, String)> {
        for version in &self.versions[&key] {
            match by {
                By::CommandLine => {
                    let name = key.name();
                    self.managed.host.ok(&format!(
                        "keyvault key set-attributes {name} --vault-name kv1 --version {version} --enabled {on}"
                    ));
                }
                By::Api => {
                    let body = json!({"attributes": {"enabled": on}});
                    self.ask_key(&format!("PATCH /keys/{}/{version}", key.name()), &body);
                }
            }
        }
        None
    }

    fn rotate(&mut self, key: Key, by: By) -> Option<(Cause, String)> {
        let made = match by {
            By::CommandLine => {
                let line = format!("keyvault key rotate {} --vault-name kv1", key.name());
                self.managed.host.json(&line)
            }
            By::Api => self.ask_key(&format!("POST /keys/{}/rotate", key.name()), &json!({})),
        };
        let version = made["key"]["kid"]
            .as_str()
            .unwrap()
            .rsplit('/')
            .next()
            .unwrap();
        self.versions
            .entry(key)
            .or_default()
            .push(version.to_owned());
        None
    }

    fn ask_key(&self, line: &str, body: &Value) -> Value {
        let managed = &self.managed;
        let answer = ask_vault(managed, &managed.admin, "kv1", line, Some(body));
        assert_eq!(answer.status, 200, "{line}: {answer:?}");
        answer.body
    }

    fn grant(&self, set: &str, on: bool, by: By) -> Option<(Cause, String)> {
        let host = &self.managed.host;
        let shown = host.json(&format!("disk-encryption-set show {set}"));
        let id = shown["identity"]["principalId"].as_str().unwrap();
        match by {
            By::CommandLine if on => {
                host.ok(&format!(
                    "keyvault set-policy kv1 --object-id {id} --key-permissions get wrapKey unwrapKey"
                ));
            }
            // Who has no policy has none to delete.
            By::CommandLine => {
                host.run(&format!("keyvault delete-policy kv1 --object-id {id}"));
            }
            By::Api => {
                let (how, keys): (_, &[&str]) = match on {
                    true => ("add", &["get", "wrapKey", "unwrapKey"]),
                    false => ("remove", &[]),
                };
                let body =
                    json!({"properties": {"accessPolicies": [policy(&self.managed, id, keys)]}});
                let client = self.client();
                client.ok(
                    &format!("PUT {VAULT}/kv1/accessPolicies/{how}"),
                    Some(&body),
                );
            }
        }
        None
    }

    pub fn client(&self) -> Client<'_> {
        Client {
            managed: &self.managed,
            token: self.token.clone(),
        }
    }

    /// What deleted snapshots leave is merged in the background, as far as it can be now.
    fn wait_for_merges(&self) {
        let begun = Instant::now();
        let installation = self.managed.host.installation();
        loop {
            let left = installation.catalog().merges().unwrap();
            let disks = disks::list(&installation, ResourceKind::Disk).unwrap();
            let is_busy = disks.iter().any(|disk| disk.job.is_some());
            let waited = begun.elapsed();
            if !is_busy && (left.is_empty() || waited > Duration::from_secs(1)) {
                return;
            }
            assert!(waited < PATIENCE, "layers are not merged: {disks:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn command(&self, change: &Change) -> Option<(Cause, String)> {
        let words = words(change);
        let begun = Instant::now();
        loop {
            let output = self
                .managed
                .host
                .command(words.as_str())
                .args(["-o", "json"])
                .output()
                .unwrap();
            if output.status.success() {
                return None;
            }
            let said = String::from_utf8(output.stderr).unwrap();
            let error: Value = serde_json::from_str(said.lines().last().unwrap_or_default())
                .unwrap_or_else(|e| panic!("{words}: {e}: {said}"));
            let message = error["message"].as_str().unwrap();
            if passes_by(message) && begun.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
            let code = error["code"].as_str().unwrap();
            return Some((cause(409, code), said));
        }
    }

    fn ask(&self, model: &Model, change: &Change) -> Option<(Cause, String)> {
        let (line, body) = request(&self.managed, model, change, &self.versions);
        let answer = self.client().ask(&line, body.as_ref());
        if answer.status < 300 {
            return None;
        }
        Some((
            cause(answer.status, answer.code()),
            format!("{line}: {answer:?}"),
        ))
    }
}
