//! What whoever runs a vault sees of it from outside, by its database alone: no master key is loaded, and nothing is
//! used, recorded or asked for.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::audit::{AuditError, Counter, last_record, visit_records};
use crate::vault_database::VaultDatabase;
use crate::{KeyId, KeyUsed, Permissions, SeenKey, VaultError, store};

/// What a vault was asked for, by its audit log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenRecords {
    /// The number of the last record that was seen.
    pub last: u64,
    /// How often each operation was asked for, refusals among it.
    pub operations: BTreeMap<String, u64>,
    /// How often something was refused, by the code of the refusal.
    pub refusals: BTreeMap<String, u64>,
}

impl SeenRecords {
    /// Nothing yet of what comes after the last record that there is: before it may be years of them.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`](crate::VaultErrorCode::Internal).
    pub fn from_now_on(database: &VaultDatabase) -> Result<Self, VaultError> {
        Ok(Self {
            last: last_record(database.connection())?,
            ..Self::default()
        })
    }

    /// Adds what was recorded since then. What is counted is in it once its record is written.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`](crate::VaultErrorCode::Internal).
    pub fn look(&mut self, database: &VaultDatabase) -> Result<(), VaultError> {
        let db = database.connection();
        // The log of a vault that was put back to an earlier state, or made anew: what it has was counted
        // before, or is older than the watch.
        let last = last_record(db)?;
        if last < self.last {
            self.last = last;
        }
        let visited = visit_records(db, self.last, |entry| {
            let count = Counter::counted_in(entry.event.detail.as_deref());
            add(&mut self.operations, &entry.event.operation, count);
            if let Some(code) = &entry.event.code {
                add(&mut self.refusals, code, count);
            }
            self.last = entry.seq;
            Ok::<_, AuditError>(())
        });
        Ok(visited?)
    }
}

impl VaultDatabase {
    /// All key versions, by name, the oldest first.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`](crate::VaultErrorCode::Internal).
    pub fn seen_keys(&self) -> Result<Vec<SeenKey>, VaultError> {
        store::seen_versions(self.connection())
    }

    /// All access policies, by object id.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`](crate::VaultErrorCode::Internal).
    pub fn policies(&self) -> Result<Vec<(Uuid, Permissions)>, VaultError> {
        store::policies(self.connection())
    }

    /// The names of the keys that have been used.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`](crate::VaultErrorCode::Internal).
    pub fn used_keys(&self) -> Result<Vec<String>, VaultError> {
        store::used_keys(self.connection())
    }

    /// As [`EmbeddedVault::last_uses`](crate::EmbeddedVault::last_uses).
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`](crate::VaultErrorCode::Internal).
    pub fn last_uses(&self, key: &str, version: Option<&str>) -> Result<Vec<KeyUsed>, VaultError> {
        store::key_uses(self.connection(), key, version)
    }

    /// As [`EmbeddedVault::has_key`](crate::EmbeddedVault::has_key).
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`](crate::VaultErrorCode::Internal).
    pub fn has_key(&self, name: &str) -> Result<bool, VaultError> {
        let db = self.connection();
        let id = KeyId {
            name: name.into(),
            version: None,
        };
        Ok(store::key(db, &id)?.is_some() || store::deleted_key(db, name)?.is_some())
    }
}

fn add(counts: &mut BTreeMap<String, u64>, name: &str, count: u64) {
    let sum = counts.entry(name.to_owned()).or_default();
    *sum = sum.saturating_add(count);
}
