//! What the API and the command line show, and what the model says of it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::change::{By, Kind};
use super::model::{BOTH, CUSTOMER, DEFAULT, Model, PLATFORM};
use crate::management::client::{Client, Managed};

/// What a view says of a disk, a snapshot, an image or a set.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Seen {
    group: Option<String>,
    tags: Option<BTreeMap<String, String>>,
    size: u64,
    encryption: Option<String>,
    set: Option<String>,
    source: Option<(String, String)>,
}

pub type All = BTreeMap<(&'static str, String), Seen>;

/// What the API shows.
pub fn by_api(client: &Client<'_>) -> All {
    let words = ["disk", "snapshot", "image", "set"];
    let mut lists = client.all_ok(&[
        "GET ~/providers/Microsoft.Compute/disks",
        "GET ~/providers/Microsoft.Compute/snapshots",
        "GET ~/providers/Microsoft.Compute/images",
        "GET ~/providers/Microsoft.Compute/diskEncryptionSets",
        "GET ~/resourceGroups",
    ]);
    let groups = lists.pop().unwrap();
    let mut seen = All::new();
    for (word, list) in words.into_iter().zip(lists) {
        for item in list["value"].as_array().unwrap() {
            seen.insert((word, text(&item["name"])), of_api(word, item));
        }
    }
    for group in groups["value"].as_array().unwrap() {
        let seen_group = Seen {
            tags: Some(tags(group)),
            ..Seen::default()
        };
        seen.insert(("group", text(&group["name"])), seen_group);
    }
    for ours in [DEFAULT, "rg"] {
        seen.remove(&("group", ours.to_owned()));
    }
    seen
}

/// What the command line shows.
pub fn by_command_line(managed: &Managed) -> All {
    let host = &managed.host;
    let mut seen = All::new();
    for kind in Kind::ALL {
        for item in host
            .json(&format!("{} list", kind.word()))
            .as_array()
            .unwrap()
        {
            let source = &item["source"];
            let found = Seen {
                size: item["diskSizeBytes"].as_u64().unwrap() >> 30,
                encryption: Some(text(&item["encryption"]["type"])),
                set: item["encryption"]["diskEncryptionSetId"]
                    .as_str()
                    .map(Into::into),
                source: source
                    .is_object()
                    .then(|| (text(&source["kind"]), text(&source["name"]))),
                ..Seen::default()
            };
            seen.insert((kind.word(), text(&item["name"])), found);
        }
    }
    for item in host.json("disk-encryption-set list").as_array().unwrap() {
        let key = text(&item["activeKey"]["keyUrl"]);
        let found = Seen {
            encryption: Some(text(&item["encryptionType"])),
            source: Some(("key".into(), key_of(&key))),
            ..Seen::default()
        };
        seen.insert(("set", text(&item["name"])), found);
    }
    seen
}

/// What the model says that a view shows.
pub fn expected(model: &Model, by: By) -> All {
    let is_api = by == By::Api;
    let mut all = All::new();
    for ((kind, name), thing) in &model.things {
        let encryption = match (&thing.set, thing.twice) {
            (None, _) => PLATFORM,
            (Some(_), true) => BOTH,
            (Some(_), false) => CUSTOMER,
        };
        let source = match (is_api, &thing.said) {
            (true, Some(said)) => Some(said),
            _ => thing.source.as_ref(),
        };
        let seen = Seen {
            group: is_api.then(|| thing.group.clone()),
            tags: is_api.then(|| thing.tags.clone()),
            size: thing.size,
            // Azure has none of an image.
            encryption: (!is_api || *kind != Kind::Image).then(|| encryption.to_owned()),
            set: thing.set.clone(),
            source: source.map(|(kind, name)| (kind.word().to_owned(), name.clone())),
        };
        all.insert((kind.word(), name.clone()), seen);
    }
    for (name, set) in &model.sets {
        let kind = if set.twice { BOTH } else { CUSTOMER };
        let seen = Seen {
            group: is_api.then(|| set.group.clone()),
            tags: is_api.then(|| set.tags.clone()),
            encryption: Some(kind.to_owned()),
            source: Some(("key".into(), set.key.name().into())),
            ..Seen::default()
        };
        all.insert(("set", name.clone()), seen);
    }
    if is_api {
        for (name, tags) in model.groups.iter().filter(|(name, _)| *name != DEFAULT) {
            let seen = Seen {
                tags: Some(tags.clone()),
                ..Seen::default()
            };
            all.insert(("group", name.clone()), seen);
        }
    }
    all
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn tags(item: &Value) -> BTreeMap<String, String> {
    let tags = item["tags"].as_object().into_iter().flatten();
    tags.map(|(name, value)| (name.clone(), text(value)))
        .collect()
}

/// The last word of an id, and what it is of.
fn name_in(id: &Value) -> Option<(String, String)> {
    let mut words = id.as_str()?.rsplit('/');
    let name = words.next()?.to_owned();
    let kind = words.next()?.trim_end_matches('s').to_owned();
    Some((kind, name))
}

/// The name of the key in its URL, or in that of a version.
fn key_of(url: &str) -> String {
    let (_, path) = url.split_once("/keys/").unwrap_or_default();
    path.split('/').next().unwrap_or_default().to_owned()
}

fn of_api(word: &str, item: &Value) -> Seen {
    let properties = &item["properties"];
    let group = item["id"].as_str().and_then(|id| id.split('/').nth(4));
    let common = Seen {
        group: group.map(Into::into),
        tags: Some(tags(item)),
        ..Seen::default()
    };
    let set = |id: &Value| name_in(id).map(|(_, name)| name);
    match word {
        "set" => Seen {
            encryption: Some(text(&properties["encryptionType"])),
            source: Some((
                "key".into(),
                key_of(&text(&properties["activeKey"]["keyUrl"])),
            )),
            ..common
        },
        "image" => {
            let os_disk = &properties["storageProfile"]["osDisk"];
            let of = [&os_disk["snapshot"]["id"], &os_disk["managedDisk"]["id"]];
            Seen {
                size: os_disk["diskSizeGB"].as_u64().unwrap(),
                set: set(&os_disk["diskEncryptionSet"]["id"]),
                source: of.into_iter().find_map(name_in),
                ..common
            }
        }
        _ => {
            let data = &properties["creationData"];
            let of = [&data["sourceResourceId"], &data["imageReference"]["id"]];
            Seen {
                size: properties["diskSizeGB"].as_u64().unwrap(),
                encryption: Some(text(&properties["encryption"]["type"])),
                set: set(&properties["encryption"]["diskEncryptionSetId"]),
                source: of.into_iter().find_map(name_in),
                ..common
            }
        }
    }
}
