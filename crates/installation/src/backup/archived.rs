//! Records of an audit log that were archived before a backup was made.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use vault::audit::{Kept, Segment};

/// The directory, below the state directory, into which segments are restored.
pub(super) const DIRECTORY: &str = "segments";

/// Records that were archived before a backup was made. Field names are the manifest's.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchivedPart {
    /// Whose log it is, as exports call it.
    pub log: String,
    /// The log's id.
    pub log_id: Uuid,
    /// The records, as the log has them on record.
    #[serde(flatten)]
    pub segment: Segment,
    /// The name that the file was given.
    pub name: String,
    /// Where the file was written, when that is known.
    pub file: Option<String>,
    /// The SHA-256 of the file, in hexadecimal, when that is known.
    pub sha256: Option<String>,
    /// Whether it is in the backup, as `segments/NAME`.
    pub included: bool,
}

impl ArchivedPart {
    pub(super) fn new(log: &str, kept: Kept) -> Self {
        Self {
            log: log.into(),
            log_id: kept.log,
            segment: kept.segment,
            name: kept.name,
            file: kept.file.map(|file| file.to_string_lossy().into_owned()),
            sha256: kept.sha256,
            included: false,
        }
    }

    /// The path of its entry, when it is included.
    pub(super) fn entry(&self) -> String {
        format!("{DIRECTORY}/{}", self.name)
    }

    /// What it is, for a person.
    pub fn describe(&self) -> String {
        let sum = match &self.sha256 {
            Some(sha256) => format!(", SHA-256 {sha256}"),
            None => String::new(),
        };
        format!(
            "records {} to {} of the audit log {}, which were archived to {}{sum}",
            self.segment.first,
            self.segment.last,
            self.log,
            self.file.as_deref().unwrap_or(&self.name)
        )
    }

    pub(super) fn has(&self, log: Uuid, segment: &Segment) -> bool {
        (self.log_id, &self.segment) == (log, segment)
    }
}
