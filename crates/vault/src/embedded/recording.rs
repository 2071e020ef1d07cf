//! The vault's audit log: what a record says, and how it is kept.

use std::path::Path;

use database::Connection;
use time::OffsetDateTime;

use super::quota::THROTTLED;
use super::subject::Subject;
use super::vault::EmbeddedVault;
use crate::audit::{
    APPENDING, Archived, AuditError, AuditRecord, Chain, Counted, Entry, Event, REFUSALS,
};
use crate::refusal::shortened;
use crate::store;
use crate::{Caller, KeyId, KeyUsed, Origin, VaultError, VaultErrorCode};

/// For how long the checks that a running disk makes of its key are counted, before a record says how
/// many there were.
const CHECKS: std::time::Duration = std::time::Duration::from_secs(15 * 60);

impl EmbeddedVault {
    /// The audit log, the oldest record first.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn audit_log(&self) -> Result<Vec<Entry>, VaultError> {
        let mut entries = Vec::new();
        self.read_audit(|chain, db| {
            chain.for_each(db, 0, |entry| {
                entries.push(entry);
                Ok::<_, AuditError>(())
            })
        })?;
        Ok(entries)
    }

    /// Who has used a key, or one version of it, for what, and when last. It is written in the
    /// transaction that records the use and survives the archiving of the log's records. A key that
    /// is purged takes it along. What a caller says about the disk is its claim.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn last_uses(&self, key: &str, version: Option<&str>) -> Result<Vec<KeyUsed>, VaultError> {
        self.read(|db| store::key_uses(db, key, version))
    }

    /// Whether there is a key of that name, or a deleted one that can be recovered. It is not recorded, and
    /// needs no permission.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn has_key(&self, name: &str) -> Result<bool, VaultError> {
        let id = KeyId {
            name: name.into(),
            version: None,
        };
        self.read(
            |db| Ok(store::key(db, &id)?.is_some() || store::deleted_key(db, name)?.is_some()),
        )
    }

    /// The keys that have been used.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn used_keys(&self) -> Result<Vec<String>, VaultError> {
        self.read(store::used_keys)
    }

    /// How many records of one identity the vault takes in 10 seconds.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn operations_limit(&self) -> Result<u32, VaultError> {
        let limit = store::operations_limit(&self.db())?;
        Ok(u32::try_from(limit).unwrap_or(u32::MAX))
    }

    /// Changes that.
    ///
    /// # Errors
    /// [`VaultErrorCode::BadParameter`] for none at all.
    pub fn set_operations_limit(&self, caller: &Caller, limit: u32) -> Result<(), VaultError> {
        let subject = Subject {
            detail: Some(format!("operationsLimit={limit}")),
            ..Subject::vault("VaultUpdate")
        };
        self.audited(caller, &subject, |db| {
            if !(100..=10_000_000).contains(&limit) {
                let message = "the limit is 100 to 10000000 operations of one identity in 10 s";
                return Err(VaultError::new(VaultErrorCode::BadParameter, message));
            }
            store::set_operations_limit(db, limit)
        })
    }

    /// Writes the audit log's records from before `before` into a file in `dir`, and removes them
    /// from the log; see [`Chain::archive`].
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn archive_audit(
        &self,
        caller: &Caller,
        name: &str,
        dir: &Path,
        before: OffsetDateTime,
    ) -> Result<Option<Archived>, AuditError> {
        let record = self.record(caller, &Subject::vault("AuditArchive"), None, None);
        self.chain.archive(&self.db(), name, dir, before, record)
    }

    /// The room that the log has in reserve, in bytes.
    pub fn reserve_size(&self) -> u64 {
        self.place.reserve_size()
    }

    /// The file that the vault's database is; `None` for one on a server.
    pub fn database(&self) -> Option<&Path> {
        self.place.file()
    }

    /// Reads the audit log with its chain and its database.
    pub fn read_audit<T>(&self, read: impl FnOnce(&Chain, &Connection) -> T) -> T {
        read(&self.chain, &self.db())
    }

    /// Records what was counted and is not counted any more; what fails is done by the next.
    pub(super) fn settle_in_passing(&self) {
        let now = self.clock.now();
        let settled = || -> Result<(), VaultError> {
            let db = self.db();
            if !self.chain.has_overdue(&db, now)? {
                return Ok(());
            }
            db.transaction(APPENDING, |db| {
                self.put_off_in_doubt(db)?;
                Ok(self.chain.append_counted(db, &[], now)?)
            })
        };
        if let Err(e) = settled() {
            log::error!("key vault '{}': {e}", self.name);
        }
    }

    /// Says how a record of a caller is to be kept, and charges the caller for it.
    pub(super) fn counted(
        &self,
        db: &Connection,
        caller: &Caller,
        record: AuditRecord,
    ) -> Result<Counted, VaultError> {
        let window = match &record.event.code {
            Some(_) => Some(REFUSALS),
            None if caller.purpose.check && record.event.operation == "KeyUnwrap" => Some(CHECKS),
            None => None,
        };
        let counted = window.is_some() && self.chain.is_counted(db, &record)?;
        self.charge(db, caller, &record, counted)?;
        Ok(Counted { record, window })
    }

    pub(super) fn record(
        &self,
        caller: &Caller,
        subject: &Subject<'_>,
        used: Option<&str>,
        refusal: Option<VaultErrorCode>,
    ) -> AuditRecord {
        // Whatever is refused because of the limit is of one kind: an identity that varies what it
        // asks for adds no more records than one that does not.
        if refusal == Some(VaultErrorCode::Throttled) {
            return AuditRecord::new(caller.object_id, &caller.origin, THROTTLED)
                .at(self.clock.now())
                .with_detail(format!("the first was {}", subject.operation))
                .with_code(VaultErrorCode::Throttled.as_str());
        }
        // Whoever changes something says what, and whoever uses a key, for which disk.
        let (disk, detail) = match &subject.detail {
            Some(detail) => (None, Some(without_nul(detail))),
            None => (caller.purpose.disk.as_deref(), claim(caller)),
        };
        AuditRecord {
            time: self.clock.now(),
            event: Event {
                caller: caller.object_id.to_string(),
                origin: caller.origin.to_string(),
                operation: subject.operation.into(),
                key: subject.key.map(recordable),
                version: used.or(subject.version).map(recordable),
                disk: disk.map(recordable),
                detail,
                code: refusal.map(|code| code.as_str().into()),
            },
        }
    }
}

/// What was asked for as the log has it, which is not as long as it may be.
fn recordable(text: &str) -> String {
    without_nul(&shortened(text))
}

/// A text that every database takes: one that does not would refuse the records of all who are in the same transaction.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// What a caller says that it wants a key for, beside the disk's name. What a client over the network
/// says is marked as that.
fn claim(caller: &Caller) -> Option<String> {
    let layer = caller.purpose.layer.map(|layer| format!("layer {layer}"));
    match (&caller.origin, layer, &caller.purpose.disk) {
        (Origin::Remote(_), Some(layer), _) => Some(format!("claimed by the client: {layer}")),
        (Origin::Remote(_), None, Some(_)) => Some("claimed by the client".into()),
        (_, layer, _) => layer,
    }
}
