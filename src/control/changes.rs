//! Changes of disk encryption sets, and of the keys that wrap disks, in the audit log of the
//! installation. How the keys are used is in the logs of their vaults.

use time::OffsetDateTime;

use super::{ControlError, Installation};
use crate::audit::{AuditLog, AuditRecord};
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
        self.append(
            &log,
            operation.as_str(),
            key_url,
            None,
            format!("set {name}"),
        )?;
        Ok(changed)
    }

    /// Records that the key `key_url` is about to wrap a disk. What cannot be recorded is not to be
    /// done.
    pub(super) fn record_rewrap(
        &self,
        log: &AuditLog,
        key_url: &str,
        disk: &str,
        detail: String,
    ) -> Result<(), ControlError> {
        self.append(log, "DiskRewrap", key_url, Some(disk), detail)
    }

    fn append(
        &self,
        log: &AuditLog,
        operation: &str,
        key_url: &str,
        disk: Option<&str>,
        detail: String,
    ) -> Result<(), ControlError> {
        let operator = self.operator();
        let key = key_url.parse::<KeyUrl>().ok();
        log.append(&AuditRecord {
            time: OffsetDateTime::now_utc(),
            caller: operator.object_id,
            origin: operator.origin.to_string(),
            operation: operation.into(),
            key: key
                .as_ref()
                .map(|url| format!("{}/keys/{}", url.vault_url, url.key.name)),
            version: key.and_then(|url| url.key.version),
            disk: disk.map(Into::into),
            detail: Some(detail),
            refusal: None,
        })?;
        Ok(())
    }
}
