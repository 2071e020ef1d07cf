//! A snapshot or an image that is read, so that it may not go meanwhile.

use crate::resource::directory_lock::{DirectoryLock, lock_patiently};
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use installation::Installation;
use installation::envelope::ResourceKind;

/// A snapshot or an image, which nobody deletes, or takes a layer from, for as long as the returned lock is there.
///
/// # Errors
/// [`DiskError::InUse`], and others when there is no such thing.
pub(super) fn hold(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
) -> Result<(Disk, DirectoryLock), DiskError> {
    let source = Disk::of_kind(installation, kind, name)?;
    let lock = hold_found(&source)?;
    Ok((source, lock))
}

/// The same of one that was found. A merge that takes a layer from it is waited for, and so is whoever makes a
/// disk of it.
pub(super) fn hold_found(source: &Disk) -> Result<DirectoryLock, DiskError> {
    lock_patiently(source.directory())
        .map_err(DiskError::file("lock", source.directory()))?
        .ok_or_else(|| DiskError::InUse {
            name: source.name().into(),
            path: source.directory().into(),
        })
}
