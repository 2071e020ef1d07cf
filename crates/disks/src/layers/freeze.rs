//! Freezing what a disk holds, so that a snapshot or a copy can have it too.
//!
//! A disk that was not written to since it got its top layer has nothing in that: all that it holds is in the layers
//! beneath, which nobody writes to. A snapshot or a copy gets these then, and the disk no further layer, of which it can
//! have but so many.
//!
//! That nothing is in it is known while the disk's user is quiesced, whose writes are in the durable map then. The user
//! goes on at once: what it writes from then on is in the top layer, and the layers beneath stay what the disk held at
//! that moment. What merges or drops them waits for the header's lock, which is held until they are shared.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use crate::layers::push::{push_locked, refuse_job};
use crate::layers::swap_volume::SwapVolume;
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::open::geometry;
use crate::resource::unlock::Unwrapper;
use installation::Installation;
use installation::envelope::{Header, HeaderLock, HeaderPayload, LayerRecord};
use keys::{Dek, DekStack};
use volume::examine_map;

/// Bytes of a map file that are looked at. One that has more says something, or nobody can tell in time.
const LOOKED_AT: u64 = 4 << 20;

/// What a disk holds, in layers that are written to no more.
pub(super) struct Frozen<'a> {
    /// What the disk's header says, with these layers alone.
    pub header: &'a HeaderPayload,
    /// The DEK of the top one of them.
    pub dek: &'a Dek,
    /// Whether the disk gets another top layer for that.
    pub is_new: bool,
}

/// Freezes what a disk holds, whose user is `volume`, and gives it to `take`, before the disk's header names a new top
/// layer, if it has to get one.
///
/// # Errors
/// As [`push`](super::push::push); what `take` says.
pub(super) fn freeze(
    installation: &Installation,
    disk: &Disk,
    volume: &mut dyn SwapVolume,
    take: impl FnOnce(&Frozen<'_>) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let file = disk.header_file()?;
    let lock = file.lock()?;
    if let Some((header, dek)) = unchanged(installation, disk, volume, &lock)? {
        return take(&Frozen {
            header: &header,
            dek: &dek,
            is_new: false,
        });
    }
    let before = |old: &Header, deks: &DekStack| {
        take(&Frozen {
            header: old,
            dek: deks.top(),
            is_new: true,
        })
    };
    push_locked(installation, disk, volume, lock, before, |_| ())
}

/// The header without the top layer, and the DEK of the layer beneath, if the disk was not written to since it has the
/// top layer.
fn unchanged(
    installation: &Installation,
    disk: &Disk,
    volume: &mut dyn SwapVolume,
    lock: &HeaderLock<'_>,
) -> Result<Option<(Header, Dek)>, DiskError> {
    let found = lock.read()?;
    // Before anybody is quiesced, or another key used than that of the top layer.
    if whole_beneath(found.claims()).is_none() || !is_top_empty(disk, found.claims()) {
        return Ok(None);
    }
    let mut keys = Unwrapper::new(installation);
    let (mut header, _) = disk.unlock_by(&mut keys, found)?;
    refuse_job(disk, &header)?;
    let Some(beneath) = whole_beneath(&header) else {
        return Ok(None);
    };
    let Ok(dek) = disk.unlock_layer(&mut keys, &header, beneath) else {
        return Ok(None);
    };
    volume.quiesce(&header)?;
    let is_empty = is_top_empty(disk, &header);
    volume.resume();
    if !is_empty {
        return Ok(None);
    }
    header.layers.pop();
    Ok(Some((header, dek)))
}

/// The layer beneath the top one, if a resource can have it for its top layer as it is: it is the disk's own, under the
/// same set, encrypted in the same way, and covers all of the disk.
fn whole_beneath(header: &HeaderPayload) -> Option<&LayerRecord> {
    let [.., beneath, top] = header.layers.as_slice() else {
        return None;
    };
    let is_own = beneath.origin == header.disk && beneath.size == header.size;
    let is_alike = beneath.data_unit == top.data_unit
        && beneath.disk_encryption_set == header.disk_encryption_set
        && beneath.platform_envelope.is_some() == top.platform_envelope.is_some();
    (is_own && is_alike).then_some(beneath)
}

/// Whether the durable map of the top layer says nothing of any block. What cannot be read says something.
fn is_top_empty(disk: &Disk, header: &HeaderPayload) -> bool {
    let look = || -> Result<bool, DiskError> {
        let top = header.top().ok_or_else(|| disk.no_layer())?;
        let path = disk.layer_paths(top).map;
        let map = File::open(&path).map_err(DiskError::file("open", &path))?;
        let metadata = map.metadata().map_err(DiskError::file("examine", &path))?;
        if metadata.blocks() * 512 > LOOKED_AT {
            return Ok(false);
        }
        let mut is_empty = true;
        examine_map(&map, &geometry(header, top)?, |_, states| {
            is_empty &= states?.is_none_or(|states| states.iter().all(|byte| *byte == 0));
            Ok(())
        })?;
        Ok(is_empty)
    };
    look().unwrap_or(false)
}
