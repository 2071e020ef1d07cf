//! Giving an unattached disk back what one of its snapshots holds.
//!
//! # Order of steps
//!
//! Under the header's exclusive lock: the disk's directory gets links of the snapshot's layers and the
//! files of a new, empty top layer; the header names these, in both copies, so that the wrapped DEKs
//! of what the disk held since are gone; then the files go that it does not name. A crash before the
//! header leaves the disk as it was and files that it does not name: the next revert takes them, and
//! `disk check` tells of them. One after it leaves the reverted disk with files of layers that the
//! header says are gone; `disk check --repair` removes them.

use crate::layers::hold::hold;
use crate::layers::push::{make_files, refuse_job, remove_files, top_layer};
use crate::layers::swap_volume::Unattached;
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::layer_files;
use installation::Installation;
use installation::envelope::{Header, ResourceKind};
use installation::files::sync_dir;
use keys::units::MAX_LAYERS;

/// Makes a disk, of which `volume` has the claim, hold what `snapshot` holds. It keeps its size; what
/// it got beyond the snapshot's size reads as zeros. What it held since is destroyed, but for what its
/// other snapshots hold.
///
/// # Errors
/// [`DiskError`]; the disk holds what it held then.
pub(super) fn revert(
    installation: &Installation,
    disk: &Disk,
    volume: &mut Unattached,
    snapshot: &str,
) -> Result<(), DiskError> {
    let (source, _lock) = hold(installation, ResourceKind::Snapshot, snapshot)?;
    let (from, _) = source.unlock_all(installation, source.header_file()?.read()?)?;
    let file = disk.header_file()?;
    let mut lock = file.lock()?;
    let (old, _) = disk.unlock(installation, lock.read()?)?;
    disk.check_claim(&old, &volume.claimed()?)?;
    refuse_job(disk, &old)?;
    refuse_foreign(disk, snapshot, &old, &from)?;
    let (dek, layer) = top_layer(installation, disk, &old)?;
    let mut new = old.clone();
    new.layers.clone_from(&from.layers);
    new.layers.push(layer.clone());
    layer_files::note_gone(disk.directory(), &old, &mut new);
    layer_files::share(&from.layers, source.directory(), disk.directory())?;
    let paths = disk.layer_paths(&layer);
    let written = make_files(disk, &new, &layer, &paths)
        .and_then(|claim| Ok(lock.write_both(&new, &dek).map(|()| claim)?));
    match written {
        Ok(claim) => volume.take_claim(claim),
        Err(error) => {
            // Only while the header does not name them.
            if lock
                .read()
                .is_ok_and(|now| now.claims().layers == old.layers)
            {
                remove_files(&paths);
                // The snapshot has these too.
                for layer in from.layers.iter().filter(|l| old.layer(l.id).is_none()) {
                    remove_files(&disk.layer_paths(layer));
                }
            }
            return Err(error);
        }
    }
    drop(lock);
    for gone in old.layers.iter().filter(|l| new.layer(l.id).is_none()) {
        layer_files::remove(disk.directory(), gone.id)?;
    }
    sync_dir(disk.directory()).map_err(DiskError::file("sync", disk.directory()))?;
    disk.note(installation)
}

/// A snapshot of another disk, one that is larger, or one with too many layers.
fn refuse_foreign(
    disk: &Disk,
    snapshot: &str,
    old: &Header,
    from: &Header,
) -> Result<(), DiskError> {
    let name = disk.name();
    let refuse = |why: String| Err(DiskError::Argument(why));
    if from.top().is_none_or(|top| top.origin != old.disk) {
        return refuse(format!(
            "the snapshot {snapshot} is not one of the disk {name}; make a disk of it with `disk \
             create --source {snapshot}`"
        ));
    }
    if from.size > old.size {
        return refuse(format!(
            "the snapshot {snapshot} has {} bytes, the disk {name} only {}",
            from.size, old.size
        ));
    }
    if from.layers.len() >= MAX_LAYERS {
        return refuse(format!(
            "the snapshot {snapshot} has {MAX_LAYERS} layers, which is the most"
        ));
    }
    Ok(())
}
