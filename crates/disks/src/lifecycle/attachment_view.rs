//! On which host a disk is attached, as `disk list` and `disk show` print it by a catalog that hosts share.

use std::collections::HashMap;

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use installation::Installation;
use installation::catalog::{AttachmentRecord, AttachmentState, CatalogError};

/// Which host has a disk, or has not let go of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentView {
    /// What the host is called.
    pub host: String,
    /// Its id.
    pub host_id: String,
    /// `Alive`: its lease has not ended; `Silent`: it has; `Unknown`: it was never known to have one.
    pub host_state: &'static str,
    /// When it renewed its lease last.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub host_seen: Option<OffsetDateTime>,
    /// `open`; `fencing`: the host is taking the disk over; `evicted`: the host is gone, and whoever attaches the disk takes
    /// it over.
    pub state: &'static str,
    /// How often the disk was attached or taken over.
    pub epoch: i64,
    /// Since when the host has it.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

impl AttachmentView {
    /// Of a row; nothing of one that is closed.
    pub fn of(record: &AttachmentRecord) -> Option<Self> {
        (record.state != AttachmentState::Closed).then(|| Self {
            host: record.host_name.clone(),
            host_id: record.host.clone(),
            host_state: match record.host_lives {
                Some(true) => "Alive",
                Some(false) => "Silent",
                None => "Unknown",
            },
            host_seen: record.host_seen,
            state: record.state.as_str(),
            epoch: record.epoch,
            since: record.since,
        })
    }
}

/// That of one disk. In a catalog of one host's own nothing is asked.
pub(super) fn attachment_of(
    installation: &Installation,
    disk: Uuid,
) -> Result<Option<AttachmentView>, CatalogError> {
    let catalog = installation.catalog();
    if !catalog.is_shared() {
        return Ok(None);
    }
    let found = catalog.attachment(disk)?;
    Ok(found.as_ref().and_then(AttachmentView::of))
}

/// Those of a host, or of all, by one question.
pub(super) fn attachments_on(
    installation: &Installation,
    host: Option<&str>,
) -> Result<HashMap<Uuid, AttachmentView>, CatalogError> {
    let catalog = installation.catalog();
    if !catalog.is_shared() {
        return Ok(HashMap::new());
    }
    let found = catalog.attachments(host)?;
    let views = found
        .iter()
        .filter_map(|record| Some((record.disk, AttachmentView::of(record)?)));
    Ok(views.collect())
}
