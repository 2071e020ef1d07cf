//! Disks, snapshots and images.

use std::collections::BTreeMap;

use super::keys::{ActiveKey, KeyBook};
use crate::alarm::SubjectKind;
use crate::error::AlarmsError;
use crate::facts::{Attaches, OldKey, ResourceFacts, ResourceState};
use crate::host::host_name;
use disks::{DiskView, SessionView};
use installation::envelope::ResourceKind;

/// What is known of each, and which keys they need.
pub(super) fn resources(
    views: &[DiskView],
    book: &mut KeyBook<'_>,
    attaches: Attaches<'_>,
) -> Result<Vec<ResourceFacts>, AlarmsError> {
    // To find one out may take asking a vault elsewhere.
    let mut active: BTreeMap<String, Option<ActiveKey>> = BTreeMap::new();
    let mut facts = Vec::new();
    for view in views {
        // What is being made or deleted is not looked at.
        if ["Creating", "Deleting"].contains(&view.disk_state) {
            continue;
        }
        let kind = subject_kind(view.kind);
        let mut old_keys = Vec::new();
        for (set, url) in keys_of(view) {
            book.need(url, set, format!("the {kind} {}", view.name));
            let now = match set {
                Some(set) => match active.get(set) {
                    Some(known) => known.clone(),
                    None => {
                        let key = book.active_of_named(set)?;
                        active.insert(set.to_owned(), key.clone());
                        key
                    }
                },
                None => book.latest_of(url),
            };
            if let Some(now) = now.filter(|now| !now.is(url)) {
                old_keys.push(OldKey {
                    set: set.map(str::to_owned),
                    url: url.to_owned(),
                    active: now.url,
                    since: now.since,
                });
            }
        }
        let is_attached = ["Attached", "SyncFailed"].contains(&view.disk_state);
        let attached = is_attached.then(|| attaches(view.unique_id)).flatten();
        if attached.is_none() && is_served_here(view) {
            let why = "its attach does not answer, or has another --runtime-dir";
            book.note_unknown(kind, &view.name, why);
        }
        facts.push(ResourceFacts {
            kind,
            name: view.name.clone(),
            state: state(view),
            old_keys,
            attached,
        });
    }
    Ok(facts)
}

fn subject_kind(kind: ResourceKind) -> SubjectKind {
    match kind {
        ResourceKind::Disk => SubjectKind::Disk,
        ResourceKind::Snapshot => SubjectKind::Snapshot,
        ResourceKind::Image => SubjectKind::Image,
    }
}

/// Whether an attach of this host has it. What another host serves, that one tells of; and a command that works on a
/// disk has no session.
fn is_served_here(view: &DiskView) -> bool {
    let is_here = |view: &SessionView| view.state == "Attached" && view.session.host == host_name();
    view.session.as_ref().is_some_and(is_here)
}

/// The sets and key versions of its layers, each once.
fn keys_of(view: &DiskView) -> Vec<(Option<&str>, &str)> {
    let own = (
        view.encryption.disk_encryption_set_id.as_deref(),
        view.encryption.key_url.as_str(),
    );
    let of_layers = view.layers.iter().map(|layer| {
        let set = layer.disk_encryption_set_id.as_deref();
        (set, layer.key_url.as_str())
    });
    let mut keys = Vec::new();
    // The catalog's row alone knows the key of one whose header cannot be read.
    for key in of_layers.chain(view.layers.is_empty().then_some(own)) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

fn state(view: &DiskView) -> ResourceState {
    if let Some(why) = &view.problem {
        return ResourceState::Damaged { why: why.clone() };
    }
    if let Some(failed) = &view.failed_sync {
        return ResourceState::SyncFailed {
            since: failed.time,
            error: failed.to_string(),
        };
    }
    let is_dirty = |view: &&SessionView| ["Dirty", "RuntimeMapMissing"].contains(&view.state);
    match view.session.as_ref().filter(is_dirty) {
        Some(found) => ResourceState::Dirty {
            since: found.session.since,
            map_lost: found.state == "RuntimeMapMissing",
        },
        None => ResourceState::Fine,
    }
}
