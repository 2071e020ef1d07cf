//! Changes of disk encryption sets, and of the keys that wrap disks, in the audit log of the
//! installation. How the keys are used is in the logs of their vaults.

use time::OffsetDateTime;

use super::{Installation, InstallationError};
use crate::catalog::CatalogError;
use vault::KeyUrl;
use vault::audit::{AuditError, AuditLog, AuditRecord, Event, Intent};

/// A change of a set, as the audit log names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DesOperation {
    /// It is made.
    Create,
    /// Its key or its options change.
    Update,
    /// Its identity is removed.
    RemoveIdentity,
    /// It gets an identity again.
    AssignIdentity,
    /// It is deleted.
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
pub struct KeyEvent<'a> {
    /// When.
    pub time: OffsetDateTime,
    /// The operation's name in the log.
    pub operation: &'static str,
    /// The key's URL, with the version where there is one.
    pub key_url: &'a str,
    /// The disk's name, where one is concerned.
    pub disk: Option<&'a str>,
    /// What else the log says of it.
    pub detail: String,
}

impl Installation {
    /// Makes a change of the set `name`: records that it is about to be made, with its key where that
    /// is known, and then what became of it, a refusal too. A log that cannot be written lets
    /// nothing be changed; the change may add to it.
    pub fn recorded<T>(
        &self,
        operation: DesOperation,
        name: &str,
        key_url: Option<&str>,
        change: impl FnOnce(&AuditLog) -> Result<T, InstallationError>,
    ) -> Result<T, InstallationError> {
        let log = self.audit_log()?;
        let name: String = name.chars().take(NAME_LIMIT).collect();
        let event = KeyEvent {
            time: OffsetDateTime::now_utc(),
            operation: operation.as_str(),
            key_url: key_url.unwrap_or_default(),
            disk: None,
            detail: format!("set {name}"),
        };
        let intent = log.begin(self.record_of(event))?;
        let changed = change(&log);
        let refusal = changed.as_ref().err().map(code_of);
        self.ended(log.end(intent, refusal), changed)
    }

    /// Records that the key `key_url` is about to wrap a disk. What cannot be recorded is not to be
    /// done.
    pub fn begin_rewrap(
        &self,
        log: &AuditLog,
        key_url: &str,
        disk: &str,
        detail: String,
    ) -> Result<Intent, InstallationError> {
        let event = KeyEvent {
            time: OffsetDateTime::now_utc(),
            operation: "DiskRewrap",
            key_url,
            disk: Some(disk),
            detail,
        };
        Ok(log.begin(self.record_of(event))?)
    }

    /// Does something with an identity that is recorded as an intent first, and then its outcome.
    pub(super) fn recorded_identity<T>(
        &self,
        record: AuditRecord,
        change: impl FnOnce() -> Result<T, InstallationError>,
    ) -> Result<T, InstallationError> {
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
        changed: Result<T, InstallationError>,
    ) -> Result<T, InstallationError> {
        match (recorded, changed) {
            (Ok(()), changed) => changed,
            (Err(_), Err(failure)) => Err(failure),
            (Err(unrecorded), Ok(_)) => Err(unrecorded.into()),
        }
    }

    /// Appends what the operator does to the log of the installation; it is durable then.
    pub fn append(&self, log: &AuditLog, event: KeyEvent<'_>) -> Result<(), InstallationError> {
        Ok(log.append(&self.record_of(event))?)
    }

    /// As [`Installation::append`], of what was done already: it is recorded though the file system is full.
    pub fn append_done(
        &self,
        log: &AuditLog,
        event: KeyEvent<'_>,
    ) -> Result<(), InstallationError> {
        Ok(log.append_done(&self.record_of(event))?)
    }

    fn record_of(&self, event: KeyEvent<'_>) -> AuditRecord {
        let operator = self.operator();
        let (key, version) = match event.key_url.parse::<KeyUrl>() {
            Ok(KeyUrl { vault_url, key }) => {
                (Some(format!("{vault_url}/keys/{}", key.name)), key.version)
            }
            Err(_) if event.key_url.is_empty() => (None, None),
            Err(_) => (Some(event.key_url.chars().take(URL_LIMIT).collect()), None),
        };
        AuditRecord {
            time: event.time,
            event: Event {
                caller: operator.object_id.to_string(),
                origin: operator.origin.to_string(),
                operation: event.operation.into(),
                key,
                version,
                disk: event.disk.map(Into::into),
                detail: Some(event.detail),
                code: None,
            },
        }
    }
}

/// Longest name and longest URL that are repeated: these are the user's, and may be no names.
const NAME_LIMIT: usize = 80;
const URL_LIMIT: usize = 512;

/// How the log names a refusal or failure.
pub fn code_of(error: &InstallationError) -> String {
    match error {
        InstallationError::Vault(error) => error.code.as_str(),
        InstallationError::Catalog(CatalogError::NotFound { .. }) => "ResourceNotFound",
        InstallationError::Catalog(CatalogError::Exists { .. } | CatalogError::Changed { .. }) => {
            "Conflict"
        }
        InstallationError::Catalog(CatalogError::InUse { .. }) => {
            "InUseDiskEncryptionSetCannotBeDeleted"
        }
        InstallationError::NotConnected { .. } => "VaultNotFound",
        InstallationError::RemoteVault { .. }
        | InstallationError::VaultHere { .. }
        | InstallationError::Identity { .. } => "OperationNotAllowed",
        _ => "Failed",
    }
    .into()
}
