//! What a key version wraps.

use serde::Serialize;
use uuid::Uuid;

use installation::envelope::ResourceKind;

/// Something whose DEK a key version wraps.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyUser {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: ResourceKind,
    /// Its name.
    pub name: String,
    /// The layer that it wraps, when that is not the top one: one that was shared with it, as by the
    /// image that a disk is a clone of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<Uuid>,
    /// The disk encryption set in whose name; none for the platform-managed key.
    pub disk_encryption_set_id: Option<String>,
    /// The key version that wraps it.
    pub key_url: String,
    /// As `disk show` has it.
    pub disk_state: &'static str,
    /// Why its header cannot be read, where this is what the catalog says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl KeyUser {
    /// What becomes of it without the key.
    pub fn effect(&self) -> &'static str {
        match (self.kind, self.disk_state) {
            (ResourceKind::Disk, "Attached" | "SyncFailed") => "stops at its next key check",
            (ResourceKind::Disk, _) => "cannot be attached",
            _ => "cannot be read",
        }
    }
}
