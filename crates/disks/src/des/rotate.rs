//! Rotation: wrapping what is under a set by its key again. Wherever it says disks, snapshots and
//! images are meant too, and of all of them the layers that are under the set.
//!
//! No data is touched and no order matters: each disk's header names the key version that wraps it
//! and is either old or new. So the disks are done in parallel, and what a crash or a refusal leaves
//! behind is found by comparing headers with the set's key: repeating the command goes on.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use time::OffsetDateTime;

use super::outcome::{LeftBehind, UpdatedDes};
use crate::{DiskError, NewKey};
use installation::DesOperation;
use installation::catalog::{CatalogError, DiskEncryptionSetRecord, DiskRecord, Kind, Rev, Stored};
use installation::{Installation, InstallationError, KeyAccess, retrying};
use traces::{Span, SpanKind};
use vault::audit::AuditLog;
use vault::same_key_url;

/// Disks that are wrapped at a time. Most of the time of one goes into waiting for its header and
/// the catalog to be durable.
const AT_A_TIME: usize = 16;

/// A set whose key has a newer version than it had.
pub struct FollowedDes {
    /// The set.
    pub name: String,
    /// What became of it and its disks.
    pub outcome: Result<UpdatedDes, InstallationError>,
}

/// Wraps the disks of the sets that follow the latest version of their key under that version:
/// of the set `name`, or of all such sets. A set whose disks are all wrapped by it already is not
/// reported.
///
/// # Errors
/// When the catalog cannot be read or there is no such set. What a vault refuses is told with its
/// set, since other sets go on.
pub fn follow_latest_keys(
    installation: &Installation,
    name: Option<&str>,
) -> Result<Vec<FollowedDes>, InstallationError> {
    let sets = match name {
        Some(name) => vec![installation.catalog().des(name)?],
        None => installation.catalog().all_des()?,
    };
    crate::reconcile_here(installation)?;
    let mut followed = Vec::new();
    for set in sets.into_iter().filter(|set| set.record.auto_rotation) {
        let name = set.record.name;
        let outcome = retrying(|| {
            let Stored { rev, record } = installation.catalog().des(&name)?;
            follow_latest_key(installation, rev, record)
        });
        let outcome = outcome.transpose();
        followed.extend(outcome.map(|outcome| FollowedDes { name, outcome }));
    }
    Ok(followed)
}

fn follow_latest_key(
    installation: &Installation,
    rev: Rev,
    record: DiskEncryptionSetRecord,
) -> Result<Option<UpdatedDes>, InstallationError> {
    let disks = installation.catalog().resources_under(Some(&record.name))?;
    if disks.is_empty() {
        return Ok(None);
    }
    let latest = installation.wrapping_key_of(&record)?.key_url().to_string();
    let name = &record.name;
    if disks
        .iter()
        .all(|disk| is_current(&disk.record, name, &latest))
    {
        return Ok(None);
    }
    let (name, key_url) = (record.name.clone(), record.key_url.clone());
    installation.recorded(DesOperation::Update, &name, Some(&key_url), |log| {
        let updated = rewrap_set(installation, rev, record, None, log)?;
        refuse_overtaken(updated).map(Some)
    })
}

/// Stores a changed record and wraps the set's disks under its key, which must be usable if there
/// are any. `old_key` is the key that the set had, if it is another one now.
pub(super) fn rewrap_set(
    installation: &Installation,
    rev: Rev,
    mut record: DiskEncryptionSetRecord,
    old_key: Option<String>,
    log: &AuditLog,
) -> Result<UpdatedDes, InstallationError> {
    let disks = installation.catalog().resources_under(Some(&record.name))?;
    let key = (!disks.is_empty())
        .then(|| installation.wrapping_key_of(&record))
        .transpose()?;
    let mut stale = Vec::new();
    let url = key.as_ref().map(|key| key.key_url().to_string());
    if let (Some(key), Some(url)) = (&key, &url) {
        stale.extend(disks.into_iter().map(|disk| disk.record));
        stale.retain(|disk| !is_current(disk, &record.name, url));
        key.probe()?;
    }
    let is_other_key = old_key.is_some();
    remember(&mut record, old_key, &stale, url.as_ref());
    let rev = installation.catalog().update_des(rev, &record)?;
    if is_other_key {
        // Whoever wraps something under the key of before saw the set as it was: its row, or its header, which is locked
        // meanwhile, is looked at now.
        let disks = installation.catalog().resources_under(Some(&record.name))?;
        stale = disks.into_iter().map(|disk| disk.record).collect();
    }
    let mut updated = UpdatedDes {
        record,
        rewrapped: Vec::new(),
        left: Vec::new(),
    };
    let key = match key {
        None if !stale.is_empty() => Some(installation.wrapping_key_of(&updated.record)?),
        key => key,
    };
    if let Some(key) = key {
        rewrap(installation, (rev, &key), stale, log, &mut updated);
    }
    Ok(updated)
}

/// Refuses an outcome that a later change of the set's key has replaced: what is left is under that one's key.
pub(super) fn refuse_overtaken(updated: UpdatedDes) -> Result<UpdatedDes, InstallationError> {
    let mut reasons = updated.left.iter().map(|left| &left.reason);
    let is_overtaken = reasons.any(|reason| {
        let DiskError::Control(InstallationError::Catalog(error)) = reason else {
            return false;
        };
        matches!(
            error,
            CatalogError::Changed {
                kind: Kind::DiskEncryptionSet,
                ..
            }
        )
    });
    match is_overtaken {
        true => Err(CatalogError::Changed {
            kind: Kind::DiskEncryptionSet,
            name: updated.record.name,
        }
        .into()),
        false => Ok(updated),
    }
}

fn rewrap(
    installation: &Installation,
    (rev, key): (Rev, &KeyAccess),
    stale: Vec<DiskRecord>,
    log: &AuditLog,
    updated: &mut UpdatedDes,
) {
    let new = NewKey {
        set: Some(&updated.record.name),
        rev: Some(rev),
        access: key,
        log,
    };
    let url = key.key_url().to_string();
    let part_of = Span::current_traceparent();
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Result<bool, DiskError>)>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME.min(stale.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(disk) = stale.get(index) else {
                        break;
                    };
                    let (parent, kind) = (part_of.as_deref(), SpanKind::Internal);
                    let span = Span::asked_by(parent, kind, "wrap disk under new key");
                    span.set("sealdisk.disk", disk.name.clone());
                    let entered = span.enter();
                    let outcome = crate::rewrap(installation, disk.kind, &disk.name, &new);
                    let outcome = span.came_to(outcome, |error| error.code());
                    drop((entered, span));
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.push((index, outcome));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(index, _)| *index);
    for (disk, (_, outcome)) in stale.into_iter().zip(done) {
        match outcome {
            Ok(true) => updated.rewrapped.push((disk.kind, disk.name)),
            Ok(false) => {}
            Err(reason) => {
                let mut keys = disk.keys_under(Some(&updated.record.name));
                let stale = keys.find(|key| !same_key_url(key, &url));
                let key_url = stale.unwrap_or(&disk.key_url).to_owned();
                drop(keys);
                updated.left.push(LeftBehind {
                    record: disk,
                    key_url,
                    reason,
                });
            }
        }
    }
}

/// Whether every layer that is under the set is wrapped by that key version.
fn is_current(disk: &DiskRecord, set: &str, key_url: &str) -> bool {
    disk.keys_under(Some(set))
        .all(|key| same_key_url(key, key_url))
}

/// Notes that the key is another one now, with the key versions that still wrap disks; the time of
/// the rotation too, when there is something to rotate.
fn remember(
    record: &mut DiskEncryptionSetRecord,
    old_key: Option<String>,
    stale: &[DiskRecord],
    current: Option<&String>,
) {
    let mut previous: Vec<String> = Vec::new();
    let set = Some(record.name.as_str());
    for url in stale.iter().flat_map(|disk| disk.keys_under(set)) {
        let is_known = |known: &String| same_key_url(known, url);
        if current.is_none_or(|now| !same_key_url(now, url)) && !previous.iter().any(is_known) {
            previous.push(url.to_owned());
        }
    }
    if previous.is_empty() {
        previous.extend(old_key);
    }
    if previous.is_empty() {
        return;
    }
    record.previous_keys.retain(|known| {
        let same = |url: &String| same_key_url(url, known);
        !previous.iter().any(same) && !same(&record.key_url)
    });
    record.previous_keys.splice(0..0, previous);
    record.last_rotation = Some(OffsetDateTime::now_utc());
}
