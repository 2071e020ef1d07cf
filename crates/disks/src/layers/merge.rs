//! Deleting snapshots and images, and merging the layers that nothing needs by itself any more.
//!
//! # Which layers are merged
//!
//! A snapshot's top layer is noted in the catalog when the snapshot goes (or is made, see
//! `snapshot.rs`). It is merged into the layer above it once it is no resource's top any more and all
//! that have it have the same layer above it:
//!
//! - into the top layer of a disk: that is a job of the disk, as flattening is;
//! - into a frozen layer, as when the oldest of several snapshots goes: blocks that the upper layer
//!   inherits get the very content that they inherit, encrypted anew under the upper layer's DEK. So
//!   whoever reads through the old maps meanwhile reads the same. When that is durable, one header
//!   after the other drops the lower layer. A crash anywhere leaves headers with it and headers
//!   without it, all of them right; the note makes the next command go on.

use std::collections::BTreeSet;
use std::path::Path;

use uuid::Uuid;

use crate::import::Cancel;
use crate::layers::merge_frozen::merge_frozen;
use crate::layers::op::{ChangeLayers, LayerOp};
use crate::lifecycle::delete::delete;
use crate::resource::directory::header_claims;
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::lookup::lookup;
use installation::Installation;
use installation::catalog::{Change, DiskState};
use installation::envelope::{HeaderPayload, ResourceKind};

/// A layer that can be merged.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Merge {
    /// Into the top layer of this disk.
    IntoTop {
        /// The disk's name.
        disk: String,
        /// The layer that goes.
        layer: Uuid,
    },
    /// Into another frozen layer.
    IntoFrozen {
        /// Those that have both: kinds and names.
        holders: Vec<(ResourceKind, String)>,
        /// The layer that goes.
        layer: Uuid,
        /// The one above it.
        above: Uuid,
    },
}

/// Deletes a snapshot or an image. What only it had is destroyed; a layer that others have is noted to
/// be merged.
///
/// # Errors
/// [`DiskError::HasClones`], [`DiskError::BeingCopied`]; others, after which the deletion can be repeated.
pub fn delete_source(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
    runtime_dir: &Path,
) -> Result<(), DiskError> {
    let row = lookup(installation, kind, name)?.record;
    installation
        .catalog()
        .refuse_locked(kind.into(), name, Change::Delete)?;
    let header = header_claims(&row.directory).ok();
    let top = header.as_ref().and_then(HeaderPayload::top);
    let top = top.map(|top| top.id);
    // Of one whose header cannot be read, by the catalog's row. Whatever was made of it has its top layer.
    let top_by_row = || row.layers.last().map(|layer| layer.layer);
    let all = match top.or_else(top_by_row) {
        Some(top) => holders(installation, top, Some(row.id))?,
        None => Vec::new(),
    };
    let of_this = |header: &&HeaderPayload| {
        let source = header.source.as_ref();
        source.is_some_and(|source| source.id == row.id)
    };
    let (clones, copies): (Vec<_>, Vec<_>) = all
        .iter()
        .filter(of_this)
        .partition(|header| header.kind == ResourceKind::Disk);
    if let Some(first) = clones.first() {
        return Err(DiskError::HasClones {
            kind,
            name: name.into(),
            disk: first.name.clone(),
            count: clones.len(),
        });
    }
    if let Some(copy) = copies.first() {
        return Err(DiskError::BeingCopied {
            kind,
            name: name.into(),
            snapshot: copy.name.clone(),
        });
    }
    if let Some(top) = top {
        installation.catalog().insert_merge(top)?;
    }
    delete(installation, kind, name, runtime_dir)
}

/// Merges every layer that was noted and can be, by `change` where a disk is concerned. What cannot be done now stays
/// noted; so does what a disk has that another host has attached, for that host.
///
/// # Errors
/// [`DiskError`] of the first that failed; what was done stays done.
pub fn merge_all(
    installation: &Installation,
    change: &mut ChangeLayers<'_>,
    cancel: &Cancel,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), DiskError> {
    for layer in installation.catalog().merges_here()? {
        match possible(&holders(installation, layer, None)?, layer) {
            Possible::Over => installation.catalog().delete_merge(layer)?,
            Possible::Later => {}
            Possible::Now(Merge::IntoTop { disk, layer }) => {
                let disk = Disk::find(installation, &disk)?;
                change(&disk, &LayerOp::Merge { layer })?;
            }
            Possible::Now(Merge::IntoFrozen {
                holders,
                layer,
                above,
            }) => {
                merge_frozen(
                    installation,
                    &holders,
                    (layer, above),
                    change,
                    cancel,
                    progress,
                )?;
                installation.catalog().delete_merge(layer)?;
            }
        }
    }
    Ok(())
}

/// What can be done with a layer that was noted.
#[derive(Debug, PartialEq, Eq)]
enum Possible {
    Now(Merge),
    Later,
    /// Nobody has it any more.
    Over,
}

/// The headers of all resources that are whole and have a layer by the catalog. Of one that has it by its header alone,
/// since its row has fallen behind, the layer is merged later, or stays: nothing of it is anybody else's.
fn holders(
    installation: &Installation,
    layer: Uuid,
    except: Option<Uuid>,
) -> Result<Vec<HeaderPayload>, DiskError> {
    let mut all = Vec::new();
    for row in installation.catalog().resources_with_layer(layer)? {
        if row.record.state != DiskState::Ready || Some(row.record.id) == except {
            continue;
        }
        let header = header_claims(&row.record.directory)?;
        // The catalog's name counts here.
        all.push(HeaderPayload {
            name: row.record.name,
            ..header
        });
    }
    Ok(all)
}

fn possible(all: &[HeaderPayload], layer: Uuid) -> Possible {
    let place = |header: &HeaderPayload| header.layers.iter().position(|l| l.id == layer);
    let holders: Vec<_> = all
        .iter()
        .filter_map(|header| place(header).map(|at| (header, at)))
        .collect();
    if holders.is_empty() {
        return Possible::Over;
    }
    let above = |(header, at): &(&HeaderPayload, usize)| header.layers.get(at + 1).map(|l| l.id);
    let uppers: BTreeSet<_> = holders.iter().map(above).collect();
    let Some(Some(above)) = uppers.first().copied().filter(|_| uppers.len() == 1) else {
        // It is somebody's top, or they do not agree.
        return Possible::Later;
    };
    let is_top = |(header, _): &&(&HeaderPayload, usize)| {
        header.kind == ResourceKind::Disk && header.top().is_some_and(|top| top.id == above)
    };
    match holders.iter().find(is_top) {
        Some((header, _)) if header.job.is_some() => Possible::Later,
        Some((header, _)) => Possible::Now(Merge::IntoTop {
            disk: header.name.clone(),
            layer,
        }),
        // A job may have passed what the merge would fill.
        None if holders.iter().any(|(header, _)| header.job.is_some()) => Possible::Later,
        None => Possible::Now(Merge::IntoFrozen {
            holders: holders
                .iter()
                .map(|(header, _)| (header.kind, header.name.clone()))
                .collect(),
            layer,
            above,
        }),
    }
}
