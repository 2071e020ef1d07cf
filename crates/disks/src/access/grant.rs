//! Granting access to the data of a disk or a snapshot, and revoking it.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use uuid::Uuid;

use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::lookup::refuse_locked;
use installation::catalog::{Access, AccessRecord, Touch};
use installation::envelope::ResourceKind;
use installation::{AccessToken, Installation};
use keys::with_wiped_call_stack;
use volume::store::LayerFile;

/// Most grants of a disk or snapshot at a time.
const MOST: usize = 64;
/// How long a server is waited for that has the disk open for a grant which is revoked.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long readers are waited for whose grants are revoked.
const LETTING_GO: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(50);

/// Access that is asked for.
#[derive(Debug, Clone)]
pub struct AccessRequest<'a> {
    /// A disk or a snapshot, and its name.
    pub source: (ResourceKind, &'a str),
    /// What is to be done with its data.
    pub access: Access,
    /// For how long.
    pub lifetime: Duration,
    /// The identity that asks.
    pub by: Uuid,
}

/// Access that was granted.
pub struct GrantedAccess {
    /// As the catalog has it.
    pub record: AccessRecord,
    /// What proves it.
    pub token: AccessToken,
}

/// Grants access to the data of a disk that nobody has attached, or of a snapshot. Its keys are unwrapped once, so that
/// access to what cannot be read is not granted. Who may write is one at a time: an earlier grant to write ends.
///
/// # Errors
/// [`DiskError::Uploading`] to read a disk in upload, [`DiskError::NotUploading`] to write any other; that the disk is
/// in use; what its keys cannot be unwrapped for.
pub fn grant_access(
    installation: &Installation,
    request: &AccessRequest<'_>,
    runtime_dir: &Path,
) -> Result<GrantedAccess, DiskError> {
    let (kind, name) = request.source;
    if kind == ResourceKind::Image {
        return Err(DiskError::Argument(
            "access is granted to disks and snapshots; make a disk of the image".into(),
        ));
    }
    let disk = Disk::of_kind(installation, kind, name)?;
    refuse_locked(installation, kind, name)?;
    let live = live_grants(installation, &disk)?;
    let upload = disk.header_file()?.read()?.claims().upload;
    let claim = match (request.access, upload) {
        (Access::Read, Some(_)) => return Err(disk.uploading()),
        (Access::Write, None) => return Err(DiskError::NotUploading { name: name.into() }),
        // Nobody but its writer can have it.
        (Access::Write, Some(_)) => None,
        (Access::Read, None) if kind == ResourceKind::Disk && live.is_empty() => {
            let claim = disk
                .claim()
                .map_err(|error| disk.in_use_where(installation, error))?;
            disk.settle(installation, &claim, runtime_dir)?;
            Some(claim)
        }
        (Access::Read, None) => Some(disk.claim_to_read()?),
    };
    // Read again: it may have been attached and detached until it was claimed.
    let found = disk.header_file()?.read()?;
    disk.refuse_unsynced(found.claims(), runtime_dir)?;
    with_wiped_call_stack(|| disk.unlock_all(installation, found).map(drop))?;
    let granted = insert(installation, &disk, request)?;
    drop(claim);
    Ok(granted)
}

fn insert(
    installation: &Installation,
    disk: &Disk,
    request: &AccessRequest<'_>,
) -> Result<GrantedAccess, DiskError> {
    let (token, hash) = AccessToken::new()?;
    let now = OffsetDateTime::now_utc();
    let lifetime = time::Duration::try_from(request.lifetime).ok();
    let expires = lifetime.and_then(|lifetime| now.checked_add(lifetime));
    let expires = expires.ok_or_else(|| {
        DiskError::Argument("access is not granted for that long; give a shorter time".into())
    })?;
    let record = AccessRecord {
        id: Uuid::new_v4(),
        resource: disk.id(),
        kind: disk.kind(),
        name: disk.name().into(),
        access: request.access,
        token: hash,
        expires,
        created: Touch {
            at: now,
            by: request.by,
        },
    };
    match installation.catalog().insert_access(&record, MOST)? {
        true => Ok(GrantedAccess { record, token }),
        false => Err(DiskError::Argument(format!(
            "the {} {} has {MOST} grants of access, as many as are possible: revoke them",
            record.kind, record.name
        ))),
    }
}

/// The grants that count now. Those that have expired are forgotten.
fn live_grants(installation: &Installation, disk: &Disk) -> Result<Vec<AccessRecord>, DiskError> {
    let catalog = installation.catalog();
    let now = OffsetDateTime::now_utc();
    let (live, expired): (Vec<_>, Vec<_>) = catalog
        .accesses(Some(disk.id()))?
        .into_iter()
        .partition(|access| access.is_live(now));
    for access in expired {
        catalog.delete_access(access.id)?;
    }
    Ok(live)
}

/// Revokes all access to the data of a disk or a snapshot. With that an upload is complete: the disk can be used.
///
/// # Errors
/// [`DiskError::NoFooter`] for an upload without a right footer, which can be gone on with; others, after which it can be
/// repeated. Nobody has access in any case, unless the catalog cannot be written.
pub fn revoke_access(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
) -> Result<(), DiskError> {
    let disk = Disk::of_kind(installation, kind, name)?;
    let granted = installation.catalog().accesses(Some(disk.id()))?;
    for access in &granted {
        installation.catalog().delete_access(access.id)?;
    }
    match disk.header_file()?.read()?.claims().upload {
        Some(upload) if upload.footer || !granted.is_empty() => complete(installation, &disk),
        None if !granted.is_empty() => {
            await_readers(&disk);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Waits until a server that has the disk open for a grant lets go of it, so that whoever comes next finds it free.
/// Somebody else may have it: then this waits for nothing, and says nothing.
fn await_readers(disk: &Disk) {
    let deadline = Instant::now() + LETTING_GO;
    while matches!(disk.claim_alone(), Err(DiskError::InUse { .. })) && Instant::now() < deadline {
        thread::sleep(LOOK);
    }
}

/// Has the header of an uploaded disk say that it is whole.
fn complete(installation: &Installation, disk: &Disk) -> Result<(), DiskError> {
    let _claim = claim_patiently(disk)?;
    let file = disk.header_file()?;
    let mut lock = file.lock()?;
    let found = lock.read()?;
    disk.refuse_failed_sync(found.claims())?;
    match found.claims().upload {
        None => return Ok(()),
        Some(upload) if upload.footer => {}
        Some(_) => {
            return Err(DiskError::NoFooter {
                name: disk.name().into(),
                size: found.claims().size,
            });
        }
    }
    with_wiped_call_stack(|| {
        let (mut header, dek) = disk.unlock(installation, found)?;
        header.upload = None;
        lock.write_both(&header, &dek).map_err(DiskError::from)
    })
}

/// The data of a disk in upload, for the caller alone. A server whose grant has just ended is waited for.
pub(super) fn claim_patiently(disk: &Disk) -> Result<LayerFile, DiskError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match disk.claim_alone() {
            Err(DiskError::InUse { .. }) if Instant::now() < deadline => thread::sleep(LOOK),
            claimed => return claimed,
        }
    }
}

impl Disk {
    /// Refuses what is not to be done while access to the data is granted. Whoever asks has claimed the disk, or is about
    /// to delete it.
    ///
    /// # Errors
    /// [`DiskError::Granted`].
    pub fn refuse_granted(&self, installation: &Installation) -> Result<(), DiskError> {
        let now = OffsetDateTime::now_utc();
        let granted = installation
            .catalog()
            .accesses(Some(self.id()))?
            .into_iter();
        let last = granted
            .filter(|access| access.is_live(now))
            .map(|access| access.expires)
            .max();
        match last {
            None => Ok(()),
            Some(expires) => Err(DiskError::Granted {
                kind: self.kind(),
                name: self.name().into(),
                until: vault::moment(expires),
            }),
        }
    }
}
