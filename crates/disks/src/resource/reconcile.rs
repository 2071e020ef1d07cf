//! What the catalog says of a resource, which its header has said first.

use crate::resource::directory::unverified_header;
use crate::resource::disk::Disk;
use crate::resource::error::DiskError;
use crate::resource::lookup::lookup;
use installation::catalog::{CatalogError, DiskRecord, DiskState, LayerUse, Stored};
use installation::envelope::{HeaderBuffer, HeaderPayload, UnverifiedHeader};
use installation::{Installation, this_host_id};
use vault::same_key_url;

impl Disk {
    /// Has the catalog say what the disk's header says.
    pub(crate) fn note(&self, installation: &Installation) -> Result<(), DiskError> {
        let row = lookup(installation, self.kind(), self.name())?;
        reconcile_one(installation, row, &mut HeaderBuffer::default())?;
        Ok(())
    }
}

/// Brings the catalog's rows up to date with the headers: after a crash between a header's update
/// and the catalog's, and for a disk whose directory was restored from a backup. A disk whose
/// header cannot be read keeps its row.
///
/// It waits for updates of headers that are under way.
///
/// # Errors
/// [`CatalogError`] when the catalog cannot be read.
pub fn reconcile(installation: &Installation) -> Result<(), CatalogError> {
    let mut buffer = HeaderBuffer::default();
    for row in installation.catalog().resources()? {
        if row.record.state == DiskState::Ready {
            reconcile_one(installation, row, &mut buffer)?;
        }
    }
    Ok(())
}

/// As [`reconcile`] of what is this host's: in a catalog that hosts share, what it has attached and not let go of. A row
/// that another host's crash has left behind is brought up to date by that host, or by whoever looks at the disk.
///
/// # Errors
/// As [`reconcile`].
pub fn reconcile_here(installation: &Installation) -> Result<(), CatalogError> {
    let catalog = installation.catalog();
    if !catalog.is_shared() {
        return reconcile(installation);
    }
    let attached = catalog.attachments(Some(this_host_id()))?;
    let ids: Vec<_> = attached.iter().map(|attached| attached.disk).collect();
    let mut buffer = HeaderBuffer::default();
    for row in catalog.resources_with_ids(&ids)? {
        if row.record.state == DiskState::Ready {
            reconcile_one(installation, row, &mut buffer)?;
        }
    }
    Ok(())
}

/// As [`reconcile`] for one row; returns what it says then.
pub(crate) fn reconcile_one(
    installation: &Installation,
    row: Stored<DiskRecord>,
    buffer: &mut HeaderBuffer,
) -> Result<DiskRecord, CatalogError> {
    let header = unverified_header(&row.record.directory, buffer).ok();
    match own(header.as_ref(), &row.record) {
        Some(found) => bring_up_to_date(installation, row, found),
        None => Ok(row.record),
    }
}

/// As [`reconcile_one`] for who only looks at the disk, by what the header in its directory claims.
pub(crate) fn reconcile_by(
    installation: &Installation,
    row: Stored<DiskRecord>,
    found: Option<&UnverifiedHeader>,
) -> Result<DiskRecord, CatalogError> {
    match own(found, &row.record) {
        Some(found) if is_anothers(installation, found.claims()) => {
            Ok(described_as_found(&row.record, found))
        }
        Some(found) => bring_up_to_date(installation, row, found),
        None => Ok(row.record),
    }
}

/// A header, if it is that of the row.
fn own<'a>(
    found: Option<&'a UnverifiedHeader>,
    record: &DiskRecord,
) -> Option<&'a UnverifiedHeader> {
    found.filter(|found| found.claims().disk == record.id)
}

fn bring_up_to_date(
    installation: &Installation,
    row: Stored<DiskRecord>,
    found: &UnverifiedHeader,
) -> Result<DiskRecord, CatalogError> {
    let record = described_as_found(&row.record, found);
    if record == row.record {
        return Ok(record);
    }
    match installation.catalog().update_disk(row.rev, &record) {
        Ok(_) => Ok(record),
        // Whoever was faster had a newer header.
        Err(CatalogError::Changed { .. }) => {
            let now = installation.catalog().resource(record.kind, &record.name)?;
            Ok(now.record)
        }
        // The header names a set that this installation does not have: the disk came from another, or an older copy of
        // the header is from before it was moved out of a set that is gone.
        Err(e @ CatalogError::NotFound { .. }) => {
            let newest = described(&row.record, found.claims());
            if newest != row.record {
                let _ = installation.catalog().update_disk(row.rev, &newest);
            }
            log::warn!("the header of the disk {} counts, but: {e}", record.name);
            Ok(record)
        }
        Err(e) => Err(e),
    }
}

/// Whether another host of those that share the catalog has the disk, so that its row is that one's to change: this one may
/// believe for a while what its file system has told it before.
fn is_anothers(installation: &Installation, header: &HeaderPayload) -> bool {
    let session = header.session.as_ref();
    let is_elsewhere = session.is_some_and(|session| session.is_of_this_host() == Some(false));
    is_elsewhere && installation.catalog().is_shared()
}

/// A row with what the header says that was found, and with the keys that another copy of it names: that one may be all
/// that storage has.
pub(crate) fn described_as_found(record: &DiskRecord, found: &UnverifiedHeader) -> DiskRecord {
    let mut record = described(record, found.claims());
    let others = found.others().iter();
    let others = others.filter(|other| other.disk == found.claims().disk);
    for used in others.flat_map(layer_uses) {
        let is_known = |known: &LayerUse| {
            known.disk_encryption_set == used.disk_encryption_set
                && same_key_url(&known.key_url, &used.key_url)
        };
        if !record.layers.iter().any(is_known) {
            record.layers.push(used);
        }
    }
    record
}

/// A row with what the header says.
pub(crate) fn described(record: &DiskRecord, header: &HeaderPayload) -> DiskRecord {
    DiskRecord {
        size: header.size,
        disk_encryption_set: header.disk_encryption_set.clone(),
        key_url: header
            .top()
            .map_or_else(|| record.key_url.clone(), |layer| layer.envelope.key_url()),
        layers: layer_uses(header),
        ..record.clone()
    }
}

/// The layers of a header as the catalog has them: one that is encrypted twice is there under both keys.
pub(crate) fn layer_uses(header: &HeaderPayload) -> Vec<LayerUse> {
    let layers = header.layers.iter();
    let uses = layers.flat_map(|layer| {
        let envelopes = layer.envelopes();
        envelopes.map(|(set, envelope)| LayerUse {
            layer: layer.id,
            disk_encryption_set: set.map(Into::into),
            key_url: envelope.key_url(),
        })
    });
    uses.collect()
}
