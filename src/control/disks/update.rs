//! Re-wrapping a disk's DEK under another key, no data touched.

use super::{Disk, DiskError, described, lookup};
use crate::control::Installation;
use crate::envelope::{unwrap_dek, wrap_dek};

/// Wraps the DEK of `name` under the active key of `disk_encryption_set`, or under the
/// platform-managed key, also while the disk is attached.
///
/// The old key must still unwrap; the new one is tried both ways before anything is written. The
/// header's lock is held from reading to writing, so no other update is lost, and both copies are
/// written, so the old wrapping is gone when this returns. The catalog follows the header.
///
/// # Errors
/// [`DiskError`]; the disk keeps its old wrapping then.
pub fn update(
    installation: &Installation,
    name: &str,
    disk_encryption_set: Option<&str>,
) -> Result<(), DiskError> {
    let disk = Disk::find(installation, name)?;
    let access = installation.wrapping_key(disk_encryption_set)?;
    let (vault, caller) = (access.vault.as_ref(), &access.caller);
    let file = disk.header_file()?;
    let mut lock = file.lock()?;
    let (mut header, dek) = disk.unlock(installation, lock.read()?)?;
    header.disk_encryption_set = disk_encryption_set.map(Into::into);
    for layer in &mut header.layers {
        layer.envelope = wrap_dek(vault, caller, &access.key, &dek)?;
        unwrap_dek(vault, caller, layer)?;
    }
    lock.write_both(&header, &dek)?;
    let row = lookup(installation, name)?;
    let record = described(&row.record, &header);
    installation.catalog().update_disk(row.rev, &record)?;
    Ok(())
}
