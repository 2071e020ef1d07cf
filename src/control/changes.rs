//! Changes of disk encryption sets, and of the keys that wrap disks, in the audit log of the
//! installation. How the keys are used is in the logs of their vaults.

use time::OffsetDateTime;

use super::{ControlError, Installation};
use crate::catalog::CatalogError;
use vault::KeyUrl;
use vault::audit::{AuditError, AuditLog, AuditRecord, Intent};

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
    /// Makes a change of the set `name`: records that it is about to be made, with its key where that
    /// is known, and then what became of it, a refusal too. A log that cannot be written lets
    /// nothing be changed; the change may add to it.
    pub(super) fn recorded<T>(
        &self,
        operation: DesOperation,
        name: &str,
        key_url: Option<&str>,
        change: impl FnOnce(&AuditLog) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        let log = self.audit_log()?;
        let name: String = name.chars().take(NAME_LIMIT).collect();
        let deed = KeyDeed {
            time: OffsetDateTime::now_utc(),
            operation: operation.as_str(),
            key_url: key_url.unwrap_or_default(),
            disk: None,
            detail: format!("set {name}"),
        };
        let intent = log.begin(self.record_of(deed))?;
        let changed = change(&log);
        let refusal = changed.as_ref().err().map(code_of);
        self.ended(log.end(intent, refusal), changed)
    }

    /// Records that the key `key_url` is about to wrap a disk. What cannot be recorded is not to be
    /// done.
    pub(super) fn begin_rewrap(
        &self,
        log: &AuditLog,
        key_url: &str,
        disk: &str,
        detail: String,
    ) -> Result<Intent, ControlError> {
        let deed = KeyDeed {
            time: OffsetDateTime::now_utc(),
            operation: "DiskRewrap",
            key_url,
            disk: Some(disk),
            detail,
        };
        Ok(log.begin(self.record_of(deed))?)
    }

    /// Does something with an identity that is recorded as an intent first, and then its outcome.
    pub(super) fn recorded_identity<T>(
        &self,
        record: AuditRecord,
        change: impl FnOnce() -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        let log = self.audit_log()?;
        let intent = log.begin(record)?;
        let changed = change();
        let refusal = changed.as_ref().err().map(code_of);
        self.ended(log.end(intent, refusal), changed)
    }

    /// What is told of a change whose outcome was, or was not, recorded: its own failure first.
    fn ended<T>(
        &self,
        recorded: Result<(), AuditError>,
        changed: Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        match (recorded, changed) {
            (Ok(()), changed) => changed,
            (Err(_), Err(failure)) => Err(failure),
            (Err(unrecorded), Ok(_)) => Err(unrecorded.into()),
        }
    }

    /// Appends what the operator does to the log of the installation; it is durable then.
    pub(super) fn append(&self, log: &AuditLog, deed: KeyDeed<'_>) -> Result<(), ControlError> {
        Ok(log.append(&self.record_of(deed))?)
    }

    fn record_of(&self, deed: KeyDeed<'_>) -> AuditRecord {
        let operator = self.operator();
        let (key, version) = match deed.key_url.parse::<KeyUrl>() {
            Ok(KeyUrl { vault_url, key }) => {
                (Some(format!("{vault_url}/keys/{}", key.name)), key.version)
            }
            Err(_) if deed.key_url.is_empty() => (None, None),
            Err(_) => (Some(deed.key_url.chars().take(URL_LIMIT).collect()), None),
        };
        AuditRecord {
            time: deed.time,
            caller: operator.object_id,
            origin: operator.origin.to_string(),
            operation: deed.operation.into(),
            key,
            version,
            disk: deed.disk.map(Into::into),
            detail: Some(deed.detail),
            refusal: None,
        }
    }
}

/// Longest name and longest URL that are repeated: these are the user's, and may be no names.
const NAME_LIMIT: usize = 80;
const URL_LIMIT: usize = 512;

/// How the log names a refusal or failure.
pub(super) fn code_of(error: &ControlError) -> String {
    match error {
        ControlError::Vault(error) => error.code.as_str(),
        ControlError::Catalog(CatalogError::NotFound { .. }) => "ResourceNotFound",
        ControlError::Catalog(CatalogError::Exists { .. } | CatalogError::Changed { .. }) => {
            "Conflict"
        }
        ControlError::Catalog(CatalogError::InUse { .. }) => {
            "InUseDiskEncryptionSetCannotBeDeleted"
        }
        ControlError::NotConnected { .. } => "VaultNotFound",
        ControlError::VaultElsewhere { .. }
        | ControlError::VaultHere { .. }
        | ControlError::Identity { .. } => "OperationNotAllowed",
        _ => "Failed",
    }
    .into()
}
