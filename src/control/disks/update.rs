//! Re-wrapping a disk's DEK under another key, no data touched.

use super::{Disk, DiskError, described, lookup, reconcile_one};
use crate::catalog::DiskRecord;
use crate::control::Installation;
use crate::envelope::{unwrap_dek, wrap_dek};

/// Wraps the DEK of `name` under the active key of `disk_encryption_set`, or under the
/// platform-managed key, also while the disk is attached.
///
/// The old key must still unwrap; the new one is tried both ways before anything is written. Both
/// header copies are written, so the old wrapping is gone when this returns.
///
/// # Order of steps
///
/// All under the header's exclusive lock, so that no other update is lost:
///
/// 1. the catalog's row names the new set, which cannot be deleted from then on;
/// 2. the header is written;
/// 3. the row gets the rest of what the header says.
///
/// A failure of 2 and a crash in between leave a row that says something else than the header, which
/// counts: [`reconcile`](super::reconcile) corrects the row, here and in later commands.
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

    let row = lookup(installation, name)?;
    let pinned = DiskRecord {
        disk_encryption_set: header.disk_encryption_set.clone(),
        ..row.record.clone()
    };
    let catalog = installation.catalog();
    let rev = catalog.update_disk(row.rev, &pinned)?;
    let written = lock.write_both(&header, &dek);
    drop(lock);
    if let Err(e) = written {
        reconcile_one(installation, lookup(installation, name)?)?;
        return Err(e.into());
    }
    catalog.update_disk(rev, &described(&pinned, &header))?;
    Ok(())
}
