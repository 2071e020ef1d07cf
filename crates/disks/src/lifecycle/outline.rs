//! What a disk, a snapshot or an image is, without a look at the files of its layers: what a list of thousands says of
//! each.

use std::collections::HashMap;
use std::path::Path;

use time::OffsetDateTime;
use uuid::Uuid;

use super::view::{
    DIRTY, EncryptionView, Granted, SessionView, failed_sync_view, in_use, is_upload, kind_of_key,
    session_view,
};
use crate::resource::awaited::waiter_for;
use crate::resource::directory::{header_claims, layer_paths, unverified_header};
use crate::resource::error::DiskError;
use crate::resource::lookup::lookup;
use crate::resource::reconcile::reconcile_by;
use installation::Installation;
use installation::catalog::{DiskRecord, DiskState, Stored};
use installation::envelope::{
    CloneSource, EnvelopeError, HeaderBuffer, HeaderPayload, Job, ResourceKind, Session,
    UnverifiedHeader,
};

/// A disk, a snapshot or an image; each field as [`DiskView`](super::DiskView) has it.
#[derive(Debug, Clone)]
pub struct Outline {
    /// Its name.
    pub name: String,
    /// Its id.
    pub unique_id: Uuid,
    /// One of [`DiskView::STATES`](super::DiskView::STATES). What a command has in use is not attached.
    pub disk_state: &'static str,
    /// Provisioned size.
    pub disk_size_bytes: u64,
    /// When it was made.
    pub time_created: OffsetDateTime,
    /// Whose key protects it.
    pub encryption: EncryptionView,
    /// Whether a snapshot is of what changed since the one before.
    pub incremental: bool,
    /// What it is a clone of and still shares layers with.
    pub source: Option<CloneSource>,
    /// Where it is attached, and since when.
    pub attached: Option<Session>,
    /// A job that goes on with its layers.
    pub job: Option<Job>,
}

/// The one of that kind and name.
///
/// # Errors
/// [`DiskError`].
pub fn outline(
    installation: &Installation,
    kind: ResourceKind,
    name: &str,
) -> Result<Outline, DiskError> {
    let row = lookup(installation, kind, name)?;
    let granted = Granted::read(installation, Some(row.record.id))?;
    of_row(installation, row, &granted, &mut HeaderBuffer::default())
}

/// Those of a kind that have these names, in their order, with one look at the catalog for all. `None` of what is not
/// there, or is being made.
///
/// # Errors
/// [`DiskError`] when the catalog cannot be read.
pub fn outlines(
    installation: &Installation,
    kind: ResourceKind,
    names: &[&str],
) -> Result<Vec<Option<Outline>>, DiskError> {
    let granted = Granted::read(installation, None)?;
    let rows = installation.catalog().resources_named(kind, names)?;
    let whole = rows
        .into_iter()
        .filter(|row| row.record.state != DiskState::Creating);
    let mut rows: HashMap<_, _> = whole.map(|row| (row.record.name.clone(), row)).collect();
    let mut buffer = HeaderBuffer::default();
    let outline =
        |name: &&str| of_row(installation, rows.remove(*name)?, &granted, &mut buffer).ok();
    Ok(names.iter().map(outline).collect())
}

fn of_row(
    installation: &Installation,
    row: Stored<DiskRecord>,
    granted: &Granted,
    buffer: &mut HeaderBuffer,
) -> Result<Outline, DiskError> {
    let header = unverified_header(&row.record.directory, buffer);
    let record = reconcile_by(installation, row, header.as_ref().ok())?;
    let header = header.map(UnverifiedHeader::into_claims);
    Ok(of(&record, header, granted.until(record.id)))
}

fn of(
    record: &DiskRecord,
    header: Result<HeaderPayload, EnvelopeError>,
    access_until: Option<OffsetDateTime>,
) -> Outline {
    let is_damaged = header.is_err();
    let header = header.ok();
    let is_upload = is_upload(header.as_ref());
    // Whoever serves it over the network has claimed it too.
    let is_served = access_until.is_some() || is_upload;
    let session = header
        .as_ref()
        .and_then(|header| session(record, header, !is_served));
    let is_in = |states: &[&str]| {
        session
            .as_ref()
            .is_some_and(|of| states.contains(&of.state))
    };
    let is_attached = is_in(&["Attached"]);
    let disk_state = match record.state {
        DiskState::Creating => "Creating",
        DiskState::Deleting | DiskState::Erased => "Deleting",
        DiskState::Ready if is_damaged => "Damaged",
        DiskState::Ready if header.as_ref().and_then(failed_sync_view).is_some() => "SyncFailed",
        DiskState::Ready if is_upload => match access_until {
            Some(_) => "ActiveUpload",
            None => "ReadyToUpload",
        },
        DiskState::Ready if access_until.is_some() => "ActiveSAS",
        DiskState::Ready if is_attached => "Attached",
        DiskState::Ready if is_in(&DIRTY) => "Dirty",
        DiskState::Ready => "Unattached",
    };
    Outline {
        name: record.name.clone(),
        unique_id: record.id,
        disk_state,
        disk_size_bytes: record.size,
        time_created: record.created,
        encryption: EncryptionView {
            kind: kind_of_key(record, header.as_ref()),
            disk_encryption_set_id: record.disk_encryption_set.clone(),
            key_url: record.key_url.clone(),
        },
        incremental: header.as_ref().is_some_and(|header| header.incremental),
        job: header.as_ref().and_then(|header| header.job.clone()),
        source: header.and_then(|header| header.source),
        attached: session.filter(|_| is_attached).map(|of| of.session),
    }
}

/// Whether somebody has the disk of a directory in use, or waits for it, in whatever runtime directory or on whatever
/// host: by the locks that they hold.
pub fn is_used(directory: &Path) -> bool {
    let is_claimed = |header: &HeaderPayload| {
        let data = header.top().map(|top| layer_paths(directory, top).data);
        data.is_some_and(|data| in_use(&data, header.session.is_some()))
    };
    waiter_for(directory).is_some() || header_claims(directory).is_ok_and(|h| is_claimed(&h))
}

/// With whether a claim of it can be that of an attach.
fn session(
    record: &DiskRecord,
    header: &HeaderPayload,
    may_be_attached: bool,
) -> Option<SessionView> {
    header.session.as_ref()?;
    let top = layer_paths(&record.directory, header.top()?);
    let is_used = may_be_attached && in_use(&top.data, true);
    session_view(&record.directory, header, is_used)
}
