//! Changes of disk encryption sets in the audit log of the installation.

use time::OffsetDateTime;

use super::{ControlError, Installation};
use crate::audit::AuditRecord;
use crate::vault::KeyUrl;

/// A change of a set, as the audit log names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DesOperation {
    Create,
    Update,
    RemoveIdentity,
    AssignIdentity,
    Delete,
}

impl DesOperation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Create => "DiskEncryptionSetCreate",
            Self::Update => "DiskEncryptionSetUpdate",
            Self::RemoveIdentity => "DiskEncryptionSetRemoveIdentity",
            Self::AssignIdentity => "DiskEncryptionSetAssignIdentity",
            Self::Delete => "DiskEncryptionSetDelete",
        }
    }
}

impl Installation {
    /// Makes a change of the set `name` and records it, with the key of the set. A log that
    /// cannot be opened lets nothing be changed.
    pub(super) fn recorded<T>(
        &self,
        operation: DesOperation,
        name: &str,
        key_url: &str,
        change: impl FnOnce() -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        let log = self.audit_log()?;
        let changed = change()?;
        let operator = self.operator();
        let key = key_url.parse::<KeyUrl>().ok();
        log.append(&AuditRecord {
            time: OffsetDateTime::now_utc(),
            caller: operator.object_id,
            origin: operator.origin.to_string(),
            operation: operation.as_str().into(),
            key: key
                .as_ref()
                .map(|url| format!("{}/keys/{}", url.vault_url, url.key.name)),
            version: key.and_then(|url| url.key.version),
            disk: None,
            detail: Some(format!("set {name}")),
            refusal: None,
        })?;
        Ok(changed)
    }
}
