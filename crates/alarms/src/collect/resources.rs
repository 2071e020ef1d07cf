//! Disks, snapshots and images.

use super::keys::KeyBook;
use super::one_disk::OneDisk;
use crate::alarm::SubjectKind;
use crate::error::AlarmsError;
use crate::facts::{Attaches, OldKey, ResourceFacts, ResourceState};
use crate::host::host_name;
use disks::{DiskView, LayerView, SessionView};
use installation::envelope::ResourceKind;

/// What is known of each, and which keys they need.
pub(super) fn resources(
    views: &[DiskView],
    book: &mut KeyBook<'_>,
    attaches: &dyn Attaches,
) -> Result<Vec<ResourceFacts>, AlarmsError> {
    let mut facts = Vec::new();
    for view in views {
        // What is being made or deleted is not looked at.
        if ["Creating", "Deleting"].contains(&view.disk_state) {
            continue;
        }
        let kind = subject_kind(view.kind);
        let is_attached = ["Attached", "SyncFailed"].contains(&view.disk_state);
        let attached = is_attached.then(|| attaches.ask(view.unique_id)).flatten();
        let old_keys = old_keys((kind, &view.name), attached.is_some(), keys_of(view), book)?;
        if attached.is_none() && is_served_here(view) {
            let why = "its attach does not answer, or has another --runtime-dir";
            book.note_unknown(kind, &view.name, why);
        }
        facts.push(ResourceFacts {
            kind,
            name: view.name.clone(),
            state: state(view),
            lost_header_copy: view.lost_header_copy,
            old_keys,
            attached,
        });
    }
    Ok(facts)
}

/// What is known of a disk by who has it attached.
pub(super) fn attached_disk(
    disk: &OneDisk<'_>,
    book: &mut KeyBook<'_>,
    attaches: &dyn Attaches,
) -> Result<ResourceFacts, AlarmsError> {
    let (kind, name) = (SubjectKind::Disk, disk.name);
    let keys = disk.keys.iter();
    let keys = keys.map(|(set, url)| (set.as_deref(), url.as_str()));
    Ok(ResourceFacts {
        kind,
        name: name.into(),
        state: ResourceState::Fine,
        lost_header_copy: false,
        old_keys: old_keys((kind, name), true, keys, book)?,
        attached: attaches.ask(disk.id),
    })
}

/// Notes the keys that something needs. Those that a rotation should have replaced.
fn old_keys<'a>(
    (kind, name): (SubjectKind, &str),
    is_served: bool,
    keys: impl IntoIterator<Item = (Option<&'a str>, &'a str)>,
    book: &mut KeyBook<'_>,
) -> Result<Vec<OldKey>, AlarmsError> {
    let mut old_keys = Vec::new();
    for (set, url) in keys {
        book.need_for(url, set, &format!("the {kind} {name}"), is_served);
        let now = match set {
            Some(set) => book.active_of_named(set)?,
            None => book.latest_of(url),
        };
        if let Some(now) = now.filter(|now| !now.is_gone && !now.is(url)) {
            old_keys.push(OldKey {
                set: set.map(str::to_owned),
                url: url.to_owned(),
                active: now.url,
                since: now.since,
            });
        }
    }
    Ok(old_keys)
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
pub(super) fn is_served_here(view: &DiskView) -> bool {
    let is_of_this_host = |view: &SessionView| {
        let told = view.session.is_of_this_host();
        told.unwrap_or_else(|| view.session.host == host_name())
    };
    let is_here = |view: &SessionView| view.state == "Attached" && is_of_this_host(view);
    view.session.as_ref().is_some_and(is_here)
}

/// The sets and key versions of its layers, each once.
fn keys_of(view: &DiskView) -> Vec<(Option<&str>, &str)> {
    let own = (
        view.encryption.disk_encryption_set_id.as_deref(),
        view.encryption.key_url.as_str(),
    );
    let of_layers = view.layers.iter().flat_map(LayerView::keys);
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
