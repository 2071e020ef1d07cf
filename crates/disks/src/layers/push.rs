//! Pushing a new, empty layer on a disk: the one beneath is read-only from then on.

use std::fs;

use time::OffsetDateTime;

use crate::layers::swap_volume::{NewLayers, SwapVolume};
use crate::lifecycle::new_resource::{NewLayer, new_layer};
use crate::resource::disk::{Disk, claim_data};
use crate::resource::error::DiskError;
use crate::resource::layer_files;
use crate::resource::open::geometry;
use installation::Installation;
use installation::KeyEvent;
use installation::envelope::{Header, HeaderLock, HeaderPayload, LayerRecord};
use installation::files::sync_dir;
use keys::units::MAX_LAYERS;
use keys::{Dek, DekStack};
use volume::store::LayerFile;
use volume::{LayerPaths, create_layer};

/// Pushes a layer with a fresh DEK on a disk, whose user is `volume`; `swap_volume.rs` has the order of steps.
/// `before` is given the header and the keys that the disk has until then, before the user is quiesced;
/// `change` changes whatever else the new header says.
///
/// # Errors
/// [`DiskError`]. Unless it is [`DiskError::Attached`] or about the catalog, the disk is as before.
pub(super) fn push(
    installation: &Installation,
    disk: &Disk,
    volume: &mut dyn SwapVolume,
    before: impl FnOnce(&Header, &DekStack) -> Result<(), DiskError>,
    change: impl FnOnce(&mut HeaderPayload),
) -> Result<(), DiskError> {
    let file = disk.header_file()?;
    let lock = file.lock()?;
    push_locked(installation, disk, volume, lock, before, change)
}

/// As [`push`], for whoever has the lock of the disk's header already.
pub(super) fn push_locked(
    installation: &Installation,
    disk: &Disk,
    volume: &mut dyn SwapVolume,
    mut lock: HeaderLock<'_>,
    before: impl FnOnce(&Header, &DekStack) -> Result<(), DiskError>,
    change: impl FnOnce(&mut HeaderPayload),
) -> Result<(), DiskError> {
    let found = lock.read()?;
    let (old, deks) = match volume.unattached() {
        // The keys of the layers beneath are for who goes on reading them.
        Some(_) => {
            let (old, dek) = disk.unlock(installation, found)?;
            (old, DekStack::from(dek))
        }
        None => disk.unlock_all(installation, found)?,
    };
    refuse_job(disk, &old)?;
    if old.layers.len() >= MAX_LAYERS {
        return Err(DiskError::Argument(format!(
            "the disk {0} has {MAX_LAYERS} layers, which is the most: each snapshot, image or copy that was made of it \
             after it was written to has needed another one. Delete those that nobody needs, or make it independent \
             of them with `disk flatten {0}`",
            disk.name()
        )));
    }
    let (dek, layer) = top_layer(installation, disk, &old)?;
    record(installation, disk, "DekCreate", &layer)?;
    let mut new = old.clone();
    new.layers.push(layer.clone());
    layer_files::note_gone(disk.directory(), &old, &mut new);
    change(&mut new);
    let paths = disk.layer_paths(&layer);
    let made = make_files(disk, &new, &layer, &paths)
        .and_then(|claim| before(&old, &deks).map(|()| claim));
    // The first write would begin with that, while the disk's user waits.
    let made = made.and_then(|claim| Ok(lock.make_durable().map(|()| claim)?));
    let quiesced = made.and_then(|claim| volume.quiesce(&old).map(|()| claim));
    let claim = match quiesced {
        Ok(claim) => claim,
        Err(error) => {
            remove_files(&paths);
            return Err(error);
        }
    };
    write_quiesced(&mut lock, volume, &new, &dek).inspect_err(|error| {
        // After anything else the header may name the layer.
        if !matches!(error, DiskError::Attached { .. }) {
            remove_files(&paths);
        }
    })?;
    let deks = deks.pushed(dek);
    let claim = Some(claim);
    volume.swap(NewLayers {
        header: &new,
        deks: &deks,
        claim,
    })?;
    // So that the older copy names the new layer too.
    lock.write(&new, deks.top())?;
    drop(lock);
    disk.note(installation)
}

/// Notes in the audit log of the installation what becomes of the DEK of a layer.
///
/// # Errors
/// [`DiskError::Control`].
pub(super) fn record(
    installation: &Installation,
    disk: &Disk,
    operation: &'static str,
    layer: &LayerRecord,
) -> Result<(), DiskError> {
    let log = installation.audit_log()?;
    let event = KeyEvent {
        time: OffsetDateTime::now_utc(),
        operation,
        key_url: &layer.envelope.key_url(),
        disk: Some(disk.name()),
        detail: format!("{} id {}, layer {}", disk.kind(), disk.id(), layer.id),
    };
    Ok(installation.append(&log, event)?)
}

/// Refuses what would get into the way of work that goes on, or build on what may not last.
pub(super) fn refuse_job(disk: &Disk, header: &HeaderPayload) -> Result<(), DiskError> {
    disk.refuse_failed_sync(header)?;
    match &header.job {
        None => Ok(()),
        Some(job) => Err(DiskError::JobUnderWay {
            name: disk.name().into(),
            job: job.kind,
        }),
    }
}

/// Refuses a snapshot or an image of which a part is still being copied: what goes into its top layer is not to go into a
/// layer that others have too.
pub(super) fn refuse_incomplete(source: &Disk, header: &HeaderPayload) -> Result<(), DiskError> {
    match &header.job {
        None => Ok(()),
        Some(_) => Err(DiskError::Incomplete {
            kind: source.kind(),
            name: source.name().into(),
        }),
    }
}

/// Writes a header that names other layers while the disk's user is quiesced. When nobody can tell whether it
/// was written, the user is ended: whoever comes next reads what it says.
pub(super) fn write_quiesced(
    lock: &mut HeaderLock<'_>,
    volume: &mut dyn SwapVolume,
    new: &Header,
    dek: &Dek,
) -> Result<(), DiskError> {
    let Err(error) = lock.write(new, dek) else {
        return Ok(());
    };
    let error = DiskError::from(error);
    let says_new = |lock: &HeaderLock<'_>| {
        let found = lock.read()?;
        Ok::<_, DiskError>(found.claims().layers == new.layers)
    };
    match says_new(lock) {
        Ok(false) => {
            volume.resume();
            Err(error)
        }
        // It was written and may not be durable. Nothing may be written under it before it is. The same copy is
        // written again before the other one.
        Ok(true) if lock.write(new, dek).is_ok() => Ok(()),
        Ok(true) | Err(_) => {
            volume.end();
            Err(DiskError::Attached {
                name: new.name.clone(),
                why: format!("it has ended, since its header cannot be written: {error}"),
            })
        }
    }
}

/// A layer that is to become the disk's top one, and its DEK.
pub(super) fn top_layer(
    installation: &Installation,
    disk: &Disk,
    header: &HeaderPayload,
) -> Result<(Dek, LayerRecord), DiskError> {
    let top = header.top().ok_or_else(|| disk.no_layer())?;
    let set = header.disk_encryption_set.as_deref();
    let access = installation.wrapping_key(set)?;
    let new = NewLayer {
        name: disk.name(),
        origin: header.disk,
        size: header.size,
        data_unit: top.data_unit,
        set,
    };
    new_layer(&access, &new)
}

/// Makes and claims the files of the top layer of `header`.
pub(super) fn make_files(
    disk: &Disk,
    header: &HeaderPayload,
    layer: &LayerRecord,
    paths: &LayerPaths,
) -> Result<LayerFile, DiskError> {
    create_layer(paths, &geometry(header, layer)?)?;
    sync_dir(disk.directory()).map_err(DiskError::file("sync", disk.directory()))?;
    claim_data(disk.name(), &paths.data)
}

/// Files that no header names; what is left of them is found by `disk check`.
pub(super) fn remove_files(paths: &LayerPaths) {
    for path in [&paths.data, &paths.map] {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    }
}
