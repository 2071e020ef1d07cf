//! Re-wrapping a disk's DEK under another key, no data touched.

use super::{Disk, DiskError, described, lookup, reconcile_one};
use crate::audit::AuditLog;
use crate::catalog::DiskRecord;
use crate::control::{Installation, KeyAccess};
use crate::envelope::{Header, HeaderLock, unwrap_dek, wrap_dek};
use crate::keys::Dek;

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
    let file = disk.header_file()?;
    let lock = file.lock()?;
    let (header, dek) = disk.unlock(installation, lock.read()?)?;
    let new = NewKey {
        set: disk_encryption_set,
        access: &access,
        log: &installation.audit_log()?,
    };
    wrap_anew(installation, &new, lock, header, &dek)
}

/// The key that is to wrap a disk.
pub struct NewKey<'a> {
    /// Its set; `None` for the platform-managed key.
    pub set: Option<&'a str>,
    /// The key.
    pub access: &'a KeyAccess,
    /// The audit log of the installation.
    pub log: &'a AuditLog,
}

/// As [`update`] under another key of the set to which the disk belongs. A disk that was moved to another set meanwhile, or that the key wraps already, is left alone: false then.
///
/// # Errors
/// As [`update`].
pub fn rewrap(
    installation: &Installation,
    name: &str,
    new: &NewKey<'_>,
) -> Result<bool, DiskError> {
    let disk = Disk::find(installation, name)?;
    let file = disk.header_file()?;
    let lock = file.lock()?;
    let found = lock.read()?;
    let claims = found.claims();
    disk.check_identity(claims)?;
    let top = claims.top().ok_or_else(|| disk.no_layer())?;
    let moved = claims.disk_encryption_set.as_deref() != new.set;
    let access = new.access;
    let url = access.key_url().to_string();
    if moved
        || claims
            .layers
            .iter()
            .all(|layer| layer.envelope.key_url() == url)
    {
        drop(lock);
        reconcile_one(installation, lookup(installation, name)?)?;
        return Ok(false);
    }
    // The vault is open already when both keys are in it, as with a new version.
    let (header, dek) = if top.envelope.vault_url == access.vault.url() {
        disk.unlock_by(access.vault.as_ref(), &access.caller, found)?
    } else {
        disk.unlock(installation, found)?
    };
    wrap_anew(installation, new, lock, header, &dek)?;
    Ok(true)
}

fn wrap_anew(
    installation: &Installation,
    new: &NewKey<'_>,
    mut lock: HeaderLock<'_>,
    mut header: Header,
    dek: &Dek,
) -> Result<(), DiskError> {
    let access = new.access;
    let (vault, caller) = (access.vault.as_ref(), &access.caller);
    let set: Option<String> = new.set.map(Into::into);
    header.disk_encryption_set.clone_from(&set);
    for layer in &mut header.layers {
        layer.envelope = wrap_dek(vault, caller, &access.key, dek)?;
        layer.disk_encryption_set.clone_from(&set);
        unwrap_dek(vault, caller, layer)?;
    }

    let name = header.name.clone();
    let row = lookup(installation, &name)?;
    let pinned = DiskRecord {
        disk_encryption_set: header.disk_encryption_set.clone(),
        ..row.record.clone()
    };
    let detail = format!(
        "disk id {}, set {}, before {}",
        header.disk,
        new.set.unwrap_or("-"),
        row.record.key_url
    );
    installation.record_rewrap(new.log, &access.key_url().to_string(), &name, detail)?;
    let catalog = installation.catalog();
    let rev = catalog.update_disk(row.rev, &pinned)?;
    let written = lock.write_both(&header, dek);
    // Reading the header, which the correction of a row does, takes the lock too.
    drop(lock);
    if let Err(e) = written {
        reconcile_one(installation, lookup(installation, &name)?)?;
        return Err(e.into());
    }
    catalog.update_disk(rev, &described(&pinned, &header))?;
    Ok(())
}
