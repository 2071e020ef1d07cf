//! Re-wrapping a disk's DEK under another key, no data touched.

use uuid::Uuid;

use crate::lifecycle::new_resource::{unwrapped, wrapped};
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::lookup::{lookup, refuse_locked};
use crate::resource::reconcile::{described, layer_uses};
use crate::resource::unlock::Unwrapper;
use installation::catalog::{CatalogError, DiskRecord, EncryptionType, Kind, Rev};
use installation::envelope::{Header, HeaderLock, HeaderPayload, LayerRecord, ResourceKind};
use installation::{Installation, InstallationError, KeyAccess};
use keys::Dek;
use vault::audit::AuditLog;
use vault::same_key_url;

/// Wraps the DEKs of `name` under the active key of `disk_encryption_set`, or under the
/// platform-managed key, also while the disk is attached. Layers that are under another set than the
/// disk's, those of the image of somebody else that it was cloned from, stay under that one.
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
/// counts: [`reconcile`](crate::reconcile) corrects the row, here and in later commands.
///
/// # Errors
/// [`DiskError`]; the disk keeps its old wrapping then.
pub fn update(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
    disk_encryption_set: Option<&str>,
) -> Result<(), DiskError> {
    let disk = Disk::of_kind(installation, kind, name)?;
    refuse_locked(installation, kind, name)?;
    let found = disk_encryption_set.map(|set| installation.catalog().des(set));
    let found = found.transpose()?;
    let access = match &found {
        Some(set) => installation.wrapping_key_of(&set.record)?,
        None => installation.wrapping_key(None)?,
    };
    let file = disk.header_file()?;
    let lock = file.lock()?;
    let mut keys = Unwrapper::new(installation);
    let (header, top) = disk.unlock_by(&mut keys, lock.read()?)?;
    let new = NewKey {
        set: disk_encryption_set,
        rev: found.map(|set| set.rev),
        access: &access,
        log: &installation.audit_log()?,
    };
    let own = &header.disk_encryption_set;
    refuse_other_kind(&disk, &header, access.platform.is_some())?;
    let layers = header.layers.iter();
    let rewrap = Rewrap {
        layers: layers
            .filter(|layer| layer.disk_encryption_set == *own)
            .map(|layer| layer.id)
            .collect(),
        set: disk_encryption_set.map(Into::into),
        header,
        top,
    };
    rewrap.run(installation, &disk, &new, lock, &mut keys)
}

/// Refuses to have under a set what is encrypted another number of times and is not encrypted anew: a snapshot and an
/// image never are, and a disk is not while a job copies its data under the DEK of before.
fn refuse_other_kind(disk: &Disk, header: &Header, twice: bool) -> Result<(), DiskError> {
    if !is_of_other_kind(header, twice) {
        return Ok(());
    }
    match (disk.kind(), &header.job) {
        (ResourceKind::Disk, None) => Ok(()),
        (ResourceKind::Disk, Some(job)) => Err(DiskError::JobUnderWay {
            name: disk.name().into(),
            job: job.kind,
        }),
        (kind, _) => Err(DiskError::Argument(format!(
            "the {kind} {} is encrypted {}, and a disk encryption set of the other type is for what is encrypted {}: \
             make a disk of it, move that, and make another {kind}",
            disk.name(),
            if twice { "once" } else { "twice" },
            if twice { "twice" } else { "once" },
        ))),
    }
}

/// Whether layers that are under the set of the whole are encrypted another number of times than a set does.
pub(crate) fn is_of_other_kind(header: &HeaderPayload, twice: bool) -> bool {
    let own = |layer: &&LayerRecord| layer.disk_encryption_set == header.disk_encryption_set;
    let mut own = header.layers.iter().filter(own);
    own.any(|layer| layer.is_double() != twice)
}

/// Whether a disk, a snapshot or an image has layers of its own that are encrypted once where `set` has double encryption,
/// or twice where it has none: under that set a new DEK ([`LayerOp::RotateDek`](crate::LayerOp::RotateDek)) is of the
/// set's kind.
///
/// # Errors
/// When there is no such disk or set, or the header cannot be read.
pub fn needs_other_dek(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
    set: Option<&str>,
) -> Result<bool, DiskError> {
    let disk = Disk::of_kind(installation, kind, name)?;
    let found = disk.header_file()?.read()?;
    Ok(is_of_other_kind(
        found.claims(),
        is_double(installation, set)?,
    ))
}

/// Whether what is under a set is encrypted twice; `None` is the platform-managed key.
pub(crate) fn is_double(installation: &Installation, set: Option<&str>) -> Result<bool, DiskError> {
    let kind = match set {
        Some(set) => installation.catalog().des(set)?.record.encryption_type,
        None => EncryptionType::CustomerKey,
    };
    Ok(kind == EncryptionType::PlatformAndCustomerKeys)
}

/// The key that is to wrap a disk.
pub struct NewKey<'a> {
    /// Its set; `None` for the platform-managed key.
    pub set: Option<&'a str>,
    /// The revision of the set that has the key; `None` where nobody else can change the set.
    pub rev: Option<Rev>,
    /// The key.
    pub access: &'a KeyAccess,
    /// The audit log of the installation.
    pub log: &'a AuditLog,
}

impl NewKey<'_> {
    /// Refuses a key that is not the set's any more: whoever was held up would undo what a later change has done. The
    /// caller has the lock of the header, which the later change waits for, so it comes after this one or is seen.
    fn refuse_overtaken(&self, installation: &Installation) -> Result<(), DiskError> {
        let (Some(name), Some(rev)) = (self.set, self.rev) else {
            return Ok(());
        };
        let now = installation.catalog().des(name)?;
        // Another change of the set that leaves its key as it is undoes nothing.
        if now.rev == rev
            || installation.own_key_of(&now.record)?.key_url() == self.access.key_url()
        {
            return Ok(());
        }
        let (kind, name) = (Kind::DiskEncryptionSet, name.to_owned());
        Err(CatalogError::Changed { kind, name }.into())
    }
}

/// Wraps the DEKs of those layers anew that are under the set of the key, whose ever the disk is. A
/// disk that has none any more, or whose are wrapped by the key already, is left alone: false then. Storage has its
/// header in any case, in both copies.
///
/// # Errors
/// As [`update`].
pub fn rewrap(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
    new: &NewKey<'_>,
) -> Result<bool, DiskError> {
    let disk = Disk::of_kind(installation, kind, name)?;
    let file = disk.header_file()?;
    let mut lock = file.lock()?;
    let found = lock.read()?;
    let claims = found.claims();
    disk.check_identity(claims)?;
    let url = new.access.key_url().to_string();
    let stale = |layer: &&LayerRecord| {
        layer.disk_encryption_set.as_deref() == new.set
            && !same_key_url(&layer.envelope.key_url(), &url)
    };
    let layers: Vec<Uuid> = claims.layers.iter().filter(stale).map(|l| l.id).collect();
    if layers.is_empty() {
        // Whoever wrapped them may have been told that storage does not have it.
        lock.settle()?;
        drop(lock);
        disk.note(installation)?;
        return Ok(false);
    }
    // The vault is open already when both keys are in it, as with a new version.
    let mut keys = Unwrapper::knowing(installation, new.set, new.access);
    let (header, top) = disk.unlock_by(&mut keys, found)?;
    let rewrap = Rewrap {
        layers,
        set: header.disk_encryption_set.clone(),
        header,
        top,
    };
    rewrap.run(installation, &disk, new, lock, &mut keys)?;
    Ok(true)
}

/// What is to be wrapped anew.
struct Rewrap {
    /// As it is now.
    header: Header,
    /// The DEK of its top layer, which authenticates it.
    top: Dek,
    /// The layers whose DEKs another key is to wrap.
    layers: Vec<Uuid>,
    /// The set of the disk afterwards.
    set: Option<String>,
}

impl Rewrap {
    fn run(
        self,
        installation: &Installation,
        disk: &Disk,
        new: &NewKey<'_>,
        lock: HeaderLock<'_>,
        keys: &mut Unwrapper<'_>,
    ) -> Result<(), DiskError> {
        let (header, before) = self.wrapped(disk, new, keys)?;
        let name = disk.name();
        let row = lookup(installation, disk.kind(), name)?;
        let pinned = pinned(&row.record, &header);
        let detail = format!(
            "{} id {}, set {}, before {}",
            header.kind,
            header.disk,
            new.set.unwrap_or("-"),
            before.join(" ")
        );
        let url = new.access.key_url().to_string();
        let intent = installation.begin_rewrap(new.log, &url, name, detail)?;
        let written = write(
            installation,
            disk,
            (row.rev, &pinned),
            new,
            (&header, &self.top),
            lock,
        );
        let refusal = written.as_ref().err().map(code_of);
        let recorded = new.log.end(intent, refusal);
        written?;
        Ok(recorded.map_err(InstallationError::from)?)
    }

    /// The header as it is to be, and the key versions that wrapped the layers before.
    fn wrapped(
        &self,
        disk: &Disk,
        new: &NewKey<'_>,
        keys: &mut Unwrapper<'_>,
    ) -> Result<(Header, Vec<String>), DiskError> {
        let (mut header, mut before) = (self.header.clone(), Vec::new());
        header.disk_encryption_set.clone_from(&self.set);
        let top = self.header.top().map(|top| top.id);
        for layer in &mut header.layers {
            if !self.layers.contains(&layer.id) {
                continue;
            }
            let url = layer.envelope.key_url();
            if !before.contains(&url) {
                before.push(url);
            }
            let lower = match top == Some(layer.id) {
                true => None,
                false => Some(disk.unlock_layer(keys, &self.header, layer)?),
            };
            let dek = lower.as_ref().unwrap_or(&self.top);
            let name = disk.name();
            layer.envelope = wrapped(new.access, name, layer.id, dek)?;
            layer.disk_encryption_set = new.set.map(Into::into);
            // Under the newest version of the platform's key as well. A layer that goes where there is no double
            // encryption keeps its outer DEK until it is copied into one that has none.
            if let (Some(platform), Some(outer)) = (&new.access.platform, dek.outer()) {
                layer.platform_envelope = Some(wrapped(platform, name, layer.id, outer)?);
            }
            let inner = unwrapped(new.access, name, layer.id, &layer.envelope)?;
            layer.joined(inner, keys.outer(name, layer)?)?;
        }
        Ok((header, before))
    }
}

/// Writes the header, and before and after it the row: `row` is the one that [`pinned`] made, of the
/// revision that it replaces.
fn write(
    installation: &Installation,
    disk: &Disk,
    (rev, pinned): (Rev, &DiskRecord),
    new: &NewKey<'_>,
    (header, top): (&Header, &Dek),
    mut lock: HeaderLock<'_>,
) -> Result<(), DiskError> {
    let catalog = installation.catalog();
    let rev = catalog.update_disk(rev, pinned)?;
    // A change of the set's key that does not see the row with the set is seen here.
    let written = new
        .refuse_overtaken(installation)
        .and_then(|()| Ok(lock.write_both(header, top)?));
    // Reading the header, which the correction of a row does, takes the lock too.
    drop(lock);
    if let Err(e) = written {
        disk.note(installation)?;
        return Err(e);
    }
    catalog.update_disk(rev, &described(pinned, header))?;
    Ok(())
}

/// How the log names a failure.
fn code_of(error: &DiskError) -> String {
    match error {
        DiskError::Control(error) => installation::code_of(error),
        _ => "Failed".into(),
    }
}

/// A row that names the sets that the header is going to, which cannot be deleted from then on, and
/// the keys that wrap the layers until it does.
fn pinned(row: &DiskRecord, header: &Header) -> DiskRecord {
    let mut layers = layer_uses(header);
    let until_then = row.layers.iter().filter(|used| !layers.contains(used));
    let until_then: Vec<_> = until_then.cloned().collect();
    layers.extend(until_then);
    DiskRecord {
        disk_encryption_set: header.disk_encryption_set.clone(),
        layers,
        ..row.clone()
    }
}
