//! Making a disk of another one, whether or not a guest uses that.
//!
//! # Order of steps
//!
//! As for a snapshot (see `snapshot.rs`): all of the clone is made in a staging directory, with hard links of the
//! disk's layers and a new top layer; the disk gets a new top layer, unless the one that it has is empty, by which what
//! they share is written to no more; the clone gets its name. No snapshot is made of which somebody has to think later.
//!
//! The layer that was frozen is noted in the catalog to be merged, and stays noted: it can be once one of the two
//! disks is gone, or is flat. So a crash before the clone has its name needs nothing else either.
//!
//! A deep copy (see `clone.rs`) is made in the same way.

use crate::layers::clone::{CloneRequest, NewClone, Wanted};
use crate::layers::freeze::{Frozen, freeze};
use crate::layers::swap_volume::SwapVolume;
use crate::lifecycle::update::{is_double, is_of_other_kind};
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use installation::Installation;
use installation::envelope::HeaderPayload;

/// Makes a disk, or a deep copy, of what `disk` holds now, whose user is `volume`. It takes the same time whatever the
/// disk holds.
///
/// # Errors
/// [`DiskError`]. Unless it is [`DiskError::Attached`] the disk is as before, and there is no clone.
pub(super) fn clone_disk(
    installation: &Installation,
    wanted: Wanted<'_>,
    disk: &Disk,
    volume: &mut dyn SwapVolume,
) -> Result<(), DiskError> {
    let mut new = NewClone::begin(installation, wanted, disk.directory())?;
    let take = |frozen: &Frozen<'_>| {
        // All data of a deep copy is encrypted as its set says in the end.
        if let Wanted::Clone(request) = wanted {
            refuse_other_kind(installation, request, frozen.header)?;
        }
        new.fill(frozen.header, disk.directory())?;
        match frozen.header.top() {
            Some(top) => Ok(installation.catalog().insert_merge(top.id)?),
            None => Ok(()),
        }
    };
    freeze(installation, disk, volume, take)?;
    new.finish()
}

/// Refuses a set that encrypts another number of times than the layers are encrypted that the clone shares: it would
/// be another clone than was asked for.
fn refuse_other_kind(
    installation: &Installation,
    request: &CloneRequest,
    of: &HeaderPayload,
) -> Result<(), DiskError> {
    let Some(set) = &request.disk_encryption_set else {
        return Ok(());
    };
    match is_of_other_kind(of, is_double(installation, set.as_deref())?) {
        false => Ok(()),
        true => Err(DiskError::Argument(format!(
            "a copy is encrypted as often as its disk, and the disk {} is encrypted another number of times than this \
             set does: move the disk to the set first",
            of.name
        ))),
    }
}
