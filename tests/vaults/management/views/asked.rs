//! Changes as commands and as requests, and what a refusal means.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::change::{Change, Key, Kind};
use super::model::{BOTH, CUSTOMER, Cause, DEFAULT, Model, PLATFORM};
use crate::management::client::Managed;
use crate::management::vaults::VAULT;

/// What is refused for a moment alone.
pub fn passes_by(message: &str) -> bool {
    let words = [
        "is in use (",
        "has a job under way",
        "by another command",
        "was changed by",
    ];
    words.iter().any(|words| message.contains(words))
}

pub fn cause(status: u16, code: &str) -> Cause {
    match (status, code) {
        (_, "KeyVaultAccessForbidden" | "Forbidden" | "KeyDisabled") => Cause::Key,
        (404, _) | (_, "ResourceNotFound" | "NotFound") => Cause::NotFound,
        (_, "Conflict") => Cause::Taken,
        (_, "InUseDiskEncryptionSetCannotBeDeleted" | "OperationNotAllowed") => Cause::InUse,
        (400, _) | (_, "ResizeDiskError" | "InvalidArgument" | "BadParameter") => Cause::Invalid,
        _ => panic!("{status} {code} is no class of refusals"),
    }
}

/// A change as a command.
pub fn words(change: &Change) -> String {
    let under = |set: &Option<String>| match set {
        Some(set) => format!("--disk-encryption-set {set}"),
        None => "--platform-managed".into(),
    };
    let url = |key: &Key| format!("https://kv1.vault.localhost/keys/{}", key.name());
    match change {
        Change::CreateSet {
            name, key, twice, ..
        } => {
            let kind = if *twice { BOTH } else { CUSTOMER };
            format!(
                "disk-encryption-set create {name} --key-url {} --encryption-type {kind}",
                url(key)
            )
        }
        Change::MoveSet { name, key } => {
            format!("disk-encryption-set update {name} --key-url {}", url(key))
        }
        Change::DeleteSet { name } => format!("disk-encryption-set delete {name} --yes"),
        Change::CreateDisk {
            name, size, set, ..
        } => {
            let set = set
                .as_ref()
                .map(|set| format!("--disk-encryption-set {set}"));
            format!(
                "disk create {name} --size {size}GiB {}",
                set.unwrap_or_default()
            )
        }
        Change::Copy { kind, name, of, .. } => {
            format!("{} create {name} --source {}", kind.word(), of.1)
        }
        Change::Resize { name, size } => format!("disk resize {name} --size {size}GiB"),
        Change::Move { kind, name, set } => format!("{} update {name} {}", kind.word(), under(set)),
        Change::Delete { kind, name } => format!("{} delete {name} --yes", kind.word()),
        Change::PutGroup { .. }
        | Change::DeleteGroup { .. }
        | Change::Tag { .. }
        | Change::Grant { .. }
        | Change::Enable { .. }
        | Change::Rotate { .. } => unreachable!("{change:?} is no command"),
    }
}

/// A change as a request.
pub fn request(
    managed: &Managed,
    model: &Model,
    change: &Change,
    versions: &BTreeMap<Key, Vec<String>>,
) -> (String, Option<Value>) {
    let at = |group: &str, words: &str, name: &str| {
        format!("~/resourceGroups/{group}/providers/Microsoft.Compute/{words}/{name}")
    };
    let id = |path: String| path.replacen('~', &managed.subscription(), 1);
    // Where it is, or where nothing is.
    let thing = |kind: Kind, name: &str| {
        let found = model.things.get(&(kind, name.to_owned()));
        let group = found.map_or(DEFAULT, |thing| thing.group.as_str());
        at(group, kind.words(), name)
    };
    let set = |name: &str| {
        let group = model
            .sets
            .get(name)
            .map_or(DEFAULT, |set| set.group.as_str());
        at(group, "diskEncryptionSets", name)
    };
    let key = |key: &Key| {
        let host = managed.served.host_of("kv1");
        let version = versions[key].last().unwrap();
        let url = format!("https://{host}/keys/{}/{version}", key.name());
        json!({"keyUrl": url, "sourceVault": {"id": id(format!("{VAULT}/kv1"))}})
    };
    let encryption = |name: &Option<String>| match name {
        None => json!({"type": PLATFORM, "diskEncryptionSetId": null}),
        Some(name) => {
            let twice = model.sets.get(name).is_some_and(|set| set.twice);
            let kind = if twice { BOTH } else { CUSTOMER };
            json!({"type": kind, "diskEncryptionSetId": id(set(name))})
        }
    };
    match change {
        Change::PutGroup { name, tag } => {
            let tags = if tag.is_empty() {
                json!({})
            } else {
                json!({"tag": tag})
            };
            let body = json!({"location": "local", "tags": tags});
            (format!("PUT ~/resourceGroups/{name}"), Some(body))
        }
        Change::DeleteGroup { name } => (format!("DELETE ~/resourceGroups/{name}"), None),
        Change::CreateSet {
            name,
            group,
            key: of,
            twice,
        } => {
            let kind = if *twice { BOTH } else { CUSTOMER };
            let body = json!({
                "location": "local",
                "identity": {"type": "SystemAssigned"},
                "properties": {"encryptionType": kind, "activeKey": key(of)},
            });
            (
                format!("PUT {}", at(group, "diskEncryptionSets", name)),
                Some(body),
            )
        }
        Change::MoveSet { name, key: to } => {
            let body = json!({"properties": {"activeKey": key(to)}});
            (format!("PATCH {}", set(name)), Some(body))
        }
        Change::DeleteSet { name } => (format!("DELETE {}", set(name)), None),
        Change::CreateDisk {
            name,
            group,
            size,
            set,
        } => {
            let body = json!({"location": "local", "properties": {
                "creationData": {"createOption": "Empty"},
                "diskSizeGB": size,
                "encryption": encryption(set),
            }});
            (format!("PUT {}", at(group, "disks", name)), Some(body))
        }
        Change::Copy {
            kind,
            name,
            group,
            of,
        } => {
            let source = id(thing(of.0, &of.1));
            let properties = match (kind, of.0) {
                (Kind::Image, Kind::Snapshot) => json!({"storageProfile": {"osDisk": {
                    "osType": "Linux", "osState": "Generalized", "snapshot": {"id": source},
                }}}),
                (Kind::Image, _) => json!({"storageProfile": {"osDisk": {
                    "osType": "Linux", "osState": "Generalized", "managedDisk": {"id": source},
                }}}),
                (Kind::Disk, Kind::Image) => json!({"creationData": {
                    "createOption": "FromImage", "imageReference": {"id": source},
                }}),
                _ => json!({"creationData": {"createOption": "Copy", "sourceResourceId": source}}),
            };
            let body = json!({"location": "local", "properties": properties});
            (format!("PUT {}", at(group, kind.words(), name)), Some(body))
        }
        Change::Resize { name, size } => {
            let body = json!({"properties": {"diskSizeGB": size}});
            (format!("PATCH {}", thing(Kind::Disk, name)), Some(body))
        }
        Change::Move { kind, name, set } => {
            let body = json!({"properties": {"encryption": encryption(set)}});
            (format!("PATCH {}", thing(*kind, name)), Some(body))
        }
        Change::Tag { kind, name, tag } => {
            let tags = if tag.is_empty() {
                json!({})
            } else {
                json!({"tag": tag})
            };
            (
                format!("PATCH {}", thing(*kind, name)),
                Some(json!({"tags": tags})),
            )
        }
        Change::Delete { kind, name } => (format!("DELETE {}", thing(*kind, name)), None),
        Change::Grant { .. } | Change::Enable { .. } | Change::Rotate { .. } => {
            unreachable!("{change:?} is no request of the management API")
        }
    }
}
