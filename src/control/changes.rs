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

/// Something that is done with a key.
pub(super) struct KeyDeed<'a> {
    pub(super) time: OffsetDateTime,
    pub(super) operation: &'static str,
    /// The key's URL, with the version where there is one.
    pub(super) key_url: &'a str,
    /// The disk's name, where one is concerned.
    pub(super) disk: Option<&'a str>,
    pub(super) detail: String,
}

impl Installation {
    /// Makes a change of the set `name` and records it, with the key of the set. A log that
    /// cannot be opened lets nothing be changed; the change may add to it.
    pub(super) fn recorded<T>(
        &self,
        operation: DesOperation,
        name: &str,
        key_url: &str,
        change: impl FnOnce(&AuditLog) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        let log = self.audit_log()?;
        let changed = change(&log)?;
        let deed = KeyDeed {
            time: OffsetDateTime::now_utc(),
            operation: operation.as_str(),
            key_url,
            disk: None,
            detail: format!("set {name}"),
        };
        self.append(&log, deed)?;
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
        let deed = KeyDeed {
            time: OffsetDateTime::now_utc(),
            operation: "DiskRewrap",
            key_url,
            disk: Some(disk),
            detail,
        };
        self.append(log, deed)
    }

    /// Appends what the operator does to the log of the installation; it is durable then.
    pub(super) fn append(&self, log: &AuditLog, deed: KeyDeed<'_>) -> Result<(), ControlError> {
        let operator = self.operator();
        let (key, version) = match deed.key_url.parse::<KeyUrl>() {
            Ok(KeyUrl { vault_url, key }) => {
                (format!("{vault_url}/keys/{}", key.name), key.version)
            }
            Err(_) => (deed.key_url.to_owned(), None),
        };
        log.append(&AuditRecord {
            time: deed.time,
            caller: operator.object_id,
            origin: operator.origin.to_string(),
            operation: deed.operation.into(),
            key: Some(key),
            version,
            disk: deed.disk.map(Into::into),
            detail: Some(deed.detail),
            refusal: None,
        })?;
        Ok(())
    }
}
