//! What a disk, a snapshot or an image is, without a look at the files of its layers: what a list of thousands says of
//! each.

use time::OffsetDateTime;
use uuid::Uuid;

use super::view::{
    EncryptionView, SessionView, failed_sync_view, in_use, kind_of_key, session_view,
};
use crate::resource::directory::{layer_paths, unverified_header};
use crate::resource::error::DiskError;
use crate::resource::lookup::lookup;
use crate::resource::reconcile::reconcile_by;
use installation::Installation;
use installation::catalog::{DiskRecord, DiskState};
use installation::envelope::{CloneSource, EnvelopeError, HeaderPayload, ResourceKind};

/// A disk, a snapshot or an image; each field as [`DiskView`](super::DiskView) has it.
#[derive(Debug, Clone)]
pub struct Outline {
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
    /// The host on which it is attached.
    pub attached_on: Option<String>,
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
    let header = unverified_header(&row.record.directory);
    let header = header.map(|header| header.claims().clone());
    let record = reconcile_by(installation, row, header.as_ref().ok())?;
    Ok(of(&record, header))
}

fn of(record: &DiskRecord, header: Result<HeaderPayload, EnvelopeError>) -> Outline {
    let is_damaged = header.is_err();
    let header = header.ok();
    let session = header.as_ref().and_then(|header| session(record, header));
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
        DiskState::Ready if is_attached => "Attached",
        DiskState::Ready if is_in(&["Dirty", "RuntimeMapMissing"]) => "Dirty",
        DiskState::Ready => "Unattached",
    };
    Outline {
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
        source: header.and_then(|header| header.source),
        attached_on: session.filter(|_| is_attached).map(|of| of.session.host),
    }
}

fn session(record: &DiskRecord, header: &HeaderPayload) -> Option<SessionView> {
    header.session.as_ref()?;
    let top = layer_paths(&record.directory, header.top()?);
    session_view(header, in_use(&top.data, true))
}
