//! What was seen, as the page has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use alarms::{Alarm, Facts, host_name};
use disks::des::{Dependencies, SeenSet, SeenVault};
use disks::{DiskView, LayerView};
use installation::Installation;
use installation::catalog::{DesIdentity, IdentityOwner};
use vault::{KeyPermission, KeyUrl, SeenKey};

/// An item of a section.
pub(super) type Item = (String, Value);

pub(super) fn item(id: &str, view: &impl Serialize) -> Item {
    // What is shown has only names, numbers and texts.
    (
        id.to_owned(),
        serde_json::to_value(view).unwrap_or_default(),
    )
}

/// The host, and why nothing is seen of it, if that is so.
pub(super) fn host(failure: Option<String>) -> Item {
    let view = json!({
        "name": host_name(),
        "version": env!("CARGO_PKG_VERSION"),
        "failure": failure,
    });
    ("host".to_owned(), view)
}

/// All sections.
pub(super) fn sections(
    installation: &Installation,
    seen: &Dependencies,
    facts: &Facts,
    alarms: &[Alarm],
    now: OffsetDateTime,
) -> Vec<(&'static str, Vec<Item>)> {
    let quotas: HashMap<_, _> = facts
        .vaults
        .iter()
        .map(|vault| {
            let used = vault.busiest.as_ref().map_or(0, |(_, used)| *used);
            (vault.name.as_str(), used)
        })
        .collect();
    let vault = |vault: &SeenVault| {
        let name = vault.record.name.as_str();
        item(name, &vault_view(vault, quotas.get(name).copied()))
    };
    let alarm = |alarm: &Alarm| {
        let id = format!("{} {}", alarm.code, alarm.subject);
        item(&id, alarm)
    };
    let space = facts.file_systems.iter().map(|space| {
        let path = space.path.display().to_string();
        let view = json!({ "available": space.available, "total": space.total });
        (path, view)
    });
    let backup = facts.backup.and_then(|backup| backup.last);
    let backup = json!({ "last": backup.map(OffsetDateTime::unix_timestamp) });
    vec![
        ("vaults", seen.vaults.iter().map(vault).collect()),
        ("keys", keys(seen, now)),
        ("sets", seen.sets.iter().map(set).collect()),
        ("identities", identities(installation, seen)),
        ("resources", seen.resources.iter().map(resource).collect()),
        ("layers", shared_layers(&seen.resources)),
        ("alarms", alarms.iter().map(alarm).collect()),
        ("space", space.collect()),
        ("backup", vec![("backup".to_owned(), backup)]),
    ]
}

fn vault_view(vault: &SeenVault, quota: Option<u64>) -> Value {
    let policies = vault.policies.iter().map(|(id, permissions)| {
        let has = |permission| permissions.contains(permission);
        json!({
            "identity": id,
            "permissions": permissions.names(),
            "unwraps": has(KeyPermission::UnwrapKey),
            "wraps": has(KeyPermission::WrapKey) && has(KeyPermission::Get),
        })
    });
    json!({
        "name": vault.record.name,
        "url": vault.record.url,
        "kind": vault.record.kind.name(),
        "isDeleted": vault.is_deleted,
        "problem": vault.problem,
        "quotaPercent": quota,
        "policies": policies.collect::<Vec<_>>(),
    })
}

/// The key versions that something uses, and the latest ones: keys that are rotated for years have many.
fn keys(seen: &Dependencies, now: OffsetDateTime) -> Vec<Item> {
    let used = seen.key_users().iter().map(|user| user.key_url.as_str());
    let active = seen.sets.iter().map(|set| set.active_key.as_str());
    let mut shown: BTreeSet<String> = used.chain(active).map(lower).collect();
    let mut items = Vec::new();
    for (url, key) in seen.keys.versions() {
        let is_used = shown.remove(&lower(url));
        if is_used || (key.is_latest && !key.is_deleted) {
            items.push((lower(url), key_view(seen, url, Some(key), now)));
        }
    }
    // Of vaults elsewhere, of vaults that cannot be read, and versions that are gone.
    for url in shown {
        let view = key_view(seen, &url, None, now);
        items.push((url, view));
    }
    items
}

fn key_view(seen: &Dependencies, url: &str, key: Option<&SeenKey>, now: OffsetDateTime) -> Value {
    let parsed = url.parse::<KeyUrl>().ok();
    let vault = parsed.as_ref().and_then(|parsed| {
        let mut vaults = seen.vaults.iter();
        vaults.find(|vault| vault.record.url.eq_ignore_ascii_case(&parsed.vault_url))
    });
    let time = |time: Option<OffsetDateTime>| time.map(OffsetDateTime::unix_timestamp);
    json!({
        "vault": vault.map(|vault| &vault.record.name),
        "name": parsed.as_ref().map_or(url, |parsed| &parsed.key.name),
        "version": parsed.as_ref().and_then(|parsed| parsed.key.version.as_ref()),
        "state": key_state(key, vault, now),
        "isLatest": key.is_some_and(|key| key.is_latest),
        "created": time(key.map(|key| key.created)),
        "expires": time(key.and_then(|key| key.expires)),
        "notBefore": time(key.and_then(|key| key.not_before)),
    })
}

fn key_state(
    key: Option<&SeenKey>,
    vault: Option<&SeenVault>,
    now: OffsetDateTime,
) -> &'static str {
    let Some(key) = key else {
        return match vault {
            Some(vault) if vault.problem.is_none() && !vault.record.kind.is_remote() => "missing",
            _ => "notKnown",
        };
    };
    match key {
        _ if key.is_deleted => "deleted",
        _ if !key.enabled => "disabled",
        _ if key.expires.is_some_and(|until| until <= now) => "expired",
        _ if !key.may_be_used(now) => "notYetValid",
        _ => "enabled",
    }
}

fn set(set: &SeenSet) -> Item {
    let record = &set.record;
    let identity = match &record.identity {
        DesIdentity::None => "none",
        DesIdentity::SystemAssigned => "systemAssigned",
        DesIdentity::UserAssigned { .. } => "userAssigned",
        DesIdentity::Imds { .. } => "imds",
        DesIdentity::Endpoint { .. } => "endpoint",
    };
    let view = json!({
        "name": record.name,
        "key": lower(&set.active_key),
        "autoRotation": record.auto_rotation,
        "principal": record.principal_id,
        "identity": identity,
        "lastRotation": record.last_rotation.map(OffsetDateTime::unix_timestamp),
    });
    (record.name.clone(), view)
}

fn identities(installation: &Installation, seen: &Dependencies) -> Vec<Item> {
    let special = [
        ("operator", installation.operator().object_id),
        ("platform", installation.platform().object_id),
    ];
    let special = special.map(|(kind, id)| (id, json!({ "kind": kind, "name": kind })));
    let mut items: BTreeMap<Uuid, Value> = special.into();
    for set in &seen.sets {
        let view = json!({ "kind": "set", "name": set.record.name });
        items.insert(set.record.principal_id, view);
    }
    for identity in &seen.identities {
        let view = match &identity.owner {
            IdentityOwner::Named(name) => json!({ "kind": "user", "name": name }),
            IdentityOwner::DiskEncryptionSet(name) => json!({
                "kind": "set",
                "name": name,
                // It can be used on other hosts too.
                "hasSecret": identity.secret_hash.is_some(),
            }),
        };
        items.insert(identity.object_id, view);
    }
    let items = items.into_iter();
    items.map(|(id, view)| (id.to_string(), view)).collect()
}

fn resource(disk: &DiskView) -> Item {
    let top = lower(&disk.encryption.key_url);
    let of_layers = disk.layers.iter().flat_map(LayerView::keys);
    let of_layers = of_layers.map(|(_, url)| lower(url));
    let others: BTreeSet<_> = of_layers.filter(|url| *url != top).collect();
    let view = json!({
        "kind": disk.kind,
        "name": disk.name,
        "state": disk.disk_state,
        "size": disk.disk_size_bytes,
        "used": disk.used_bytes,
        "shared": disk.shared_bytes,
        "data": disk.data_bytes,
        "set": disk.encryption.disk_encryption_set_id,
        "key": top,
        "otherKeys": others,
        "layers": disk.layers.len(),
        "source": disk.source.as_ref().map(|source| &source.name),
        "created": disk.time_created.unix_timestamp(),
        "problem": disk.problem,
        "failedSync": disk.failed_sync.as_ref().map(ToString::to_string),
        "host": disk.session.as_ref().map(|session| session.session.host_name()),
        "attachedSince": disk.session.as_ref().map(|session| session.session.since.unix_timestamp()),
        "job": disk.job,
    });
    (disk.unique_id.to_string(), view)
}

/// Layers that several have: whose, how many have them, and how much data is in them.
fn shared_layers(resources: &[DiskView]) -> Vec<Item> {
    #[derive(Default)]
    struct Shared<'a> {
        users: u64,
        data: Option<u64>,
        /// The image or snapshot whose top layer it is.
        owner: Option<&'a DiskView>,
    }
    let mut layers: BTreeMap<Uuid, Shared<'_>> = BTreeMap::new();
    for resource in resources {
        for layer in &resource.layers {
            let shared = layers.entry(layer.id).or_default();
            shared.users += 1;
            shared.data = shared.data.or(layer.data_bytes);
        }
        if let Some(top) = resource.layers.last() {
            layers
                .entry(top.id)
                .or_default()
                .owner
                .get_or_insert(resource);
        }
    }
    layers.retain(|_, shared| shared.users > 1);
    let item = |(id, shared): (Uuid, Shared<'_>)| {
        let view = json!({
            "kind": shared.owner.map(|owner| owner.kind),
            "name": shared.owner.map(|owner| &owner.name),
            "users": shared.users,
            "data": shared.data,
        });
        (id.to_string(), view)
    };
    layers.into_iter().map(item).collect()
}

/// In the URL of a key, case does not count.
fn lower(url: impl AsRef<str>) -> String {
    url.as_ref().to_ascii_lowercase()
}
