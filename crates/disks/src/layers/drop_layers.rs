//! Dropping layers whose content is in those above them.

use uuid::Uuid;

use crate::layers::hold::hold_found;
use crate::layers::push::{record, write_quiesced};
use crate::layers::swap_volume::{NewLayers, SwapVolume};
use crate::layers::verify_covered;
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::layer_files;
use installation::Installation;
use installation::envelope::{Header, HeaderPayload, ResourceKind};
use installation::files::sync_dir;

/// Drops layers beneath the top of a disk: those above them have all of their content, at the latest
/// when `volume` is quiesced. A job that was about them is over. Layers that the disk does not have
/// any more are none.
///
/// The wrapped DEKs go first, from both copies of the header; then the ciphertext. A crash between
/// leaves files that the header no longer counts among the layers, but among those that are gone:
/// `disk check --repair` removes them.
///
/// # Errors
/// [`DiskError`]; the disk has all of its layers then, or none of those that were to go.
pub(super) fn drop_layers(
    installation: &Installation,
    disk: &Disk,
    volume: &mut dyn SwapVolume,
    layers: &[Uuid],
) -> Result<(), DiskError> {
    // From a snapshot, which is a deep copy then, nothing goes while somebody makes something of it.
    let _held = match disk.kind() {
        ResourceKind::Disk => None,
        ResourceKind::Snapshot | ResourceKind::Image => Some(hold_found(disk)?),
    };
    let file = disk.header_file()?;
    let mut lock = file.lock()?;
    let (old, mut deks) = disk.unlock_all(installation, lock.read()?)?;
    disk.refuse_failed_sync(&old)?;
    let goes = |id: &Uuid| layers.contains(id);
    if old.top().is_some_and(|top| goes(&top.id)) {
        return Err(DiskError::Argument(format!(
            "the top layer of the disk {} is not dropped",
            disk.name()
        )));
    }
    // A merge into a frozen layer has filled what a job may have passed already.
    if let Some(job) = &old.job
        && !(job.drop.len() == layers.len() && job.drop.iter().all(goes))
    {
        return Err(DiskError::JobUnderWay {
            name: disk.name().into(),
            job: job.kind,
        });
    }
    if old.layers.iter().any(|layer| goes(&layer.id)) {
        verify_covered::verify_covered(disk, &old, |at| goes(&old.layers[at].id))?;
        let mut new = without(&old, goes);
        layer_files::note_gone(disk.directory(), &old, &mut new);
        let from_top: Vec<_> = old.layers.iter().rev().map(|layer| layer.id).collect();
        deks.retain_lower(|index| !goes(&from_top[index]));
        // The first write would begin with that, while the disk's user waits.
        lock.make_durable()?;
        volume.quiesce(&old)?;
        write_quiesced(&mut lock, volume, &new, deks.top())?;
        volume.swap(NewLayers {
            header: &new,
            deks: &deks,
            claim: None,
        })?;
        lock.write_both(&new, deks.top())?;
        for gone in old.layers.iter().filter(|layer| goes(&layer.id)) {
            // What is gone is gone, whether or not that can be written down.
            if let Err(error) = record(installation, disk, "DekDrop", gone) {
                log::error!("{error}");
            }
        }
    } else {
        // A power cut must not bring back a header that names them.
        lock.settle()?;
    }
    drop(lock);
    for layer in layers {
        layer_files::remove(disk.directory(), *layer)?;
    }
    sync_dir(disk.directory()).map_err(DiskError::file("sync", disk.directory()))?;
    disk.note(installation)
}

/// The header without layers, and without what was said about them.
pub(super) fn without(old: &Header, goes: impl Fn(&Uuid) -> bool) -> Header {
    let mut new = old.clone();
    new.layers.retain(|layer| !goes(&layer.id));
    new.job = old.job.clone().filter(|job| !job.drop.iter().any(&goes));
    if !shares(&new) {
        new.source = None;
    }
    new
}

/// Whether a disk has layers of what it was cloned from.
fn shares(header: &HeaderPayload) -> bool {
    let foreign = |layer: &installation::envelope::LayerRecord| layer.origin != header.disk;
    header.layers.iter().any(foreign)
}
