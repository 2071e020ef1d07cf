//! A log in a database of its own.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, TransactionBehavior};
use time::OffsetDateTime;

use super::store::TABLES;
use super::{AuditError, AuditRecord, Chain};
use crate::keys::{FileGuard, SealingError, SealingKey};
use crate::sqlite::{self, Schema};

const SCHEMA: Schema = Schema {
    what: "audit log",
    application_id: 0x5EA1_0A0D,
    steps: &[|db| db.execute_batch(TABLES)],
};

/// A log in a file, with the key of its signing key in another beside it. Several processes may
/// append to it at the same time.
pub struct AuditLog {
    db: Mutex<Connection>,
    chain: Chain,
}

impl AuditLog {
    /// Opens the log `path`; the first call makes it, and the key file that has `.key` in the place
    /// of the log's suffix.
    ///
    /// # Errors
    /// [`AuditError`], also for a key file that is missing or that others can read.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let mut db = sqlite::open(path, &SCHEMA)?;
        let key_path = path.with_extension("key");
        // Under the write lock, so that of two processes that find no log one makes it.
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let made: bool =
            transaction.query_row("SELECT count(*) FROM audit_log", [], |row| row.get(0))?;
        let chain = if made {
            let sealing = SealingKey::load(&key_path, FileGuard::Mode).map_err(AuditError::Key)?;
            Chain::load(&transaction, &sealing)?
        } else {
            let sealing = new_key(&key_path)?;
            Some(Chain::create(
                &transaction,
                &sealing,
                OffsetDateTime::now_utc(),
            )?)
        };
        transaction.commit()?;
        let chain = chain.ok_or_else(|| AuditError::tampered("its first row is missing"))?;
        Ok(Self {
            db: Mutex::new(db),
            chain,
        })
    }

    /// Appends a record; it is durable when this returns.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn append(&self, record: &AuditRecord) -> Result<(), AuditError> {
        let mut db = self.db();
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.chain
            .append(&transaction, std::slice::from_ref(record))?;
        Ok(transaction.commit()?)
    }

    /// Reads the log with its chain and its database.
    pub fn read<T>(&self, read: impl FnOnce(&Chain, &Connection) -> T) -> T {
        read(&self.chain, &self.db())
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        // A panic elsewhere rolled its transaction back; the connection itself is intact.
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the key of a log that is about to be made. A key that is there already is left from a
/// process that died before its log was complete, and is as good as a new one.
fn new_key(path: &Path) -> Result<SealingKey, AuditError> {
    let made = match path.try_exists() {
        Ok(true) => match SealingKey::load(path, FileGuard::Mode) {
            // It died while it wrote the key; nothing is sealed under half of one.
            Err(SealingError::Length { .. }) => {
                std::fs::remove_file(path).map_err(|source| AuditError::Io {
                    call: "remove",
                    path: path.into(),
                    source,
                })?;
                SealingKey::create(path)
            }
            other => other,
        },
        _ => SealingKey::create(path),
    };
    let key = made.map_err(AuditError::Key)?;
    if let Some(parent) = path.parent() {
        std::fs::File::open(parent)
            .and_then(|dir| dir.sync_all())
            .map_err(|source| AuditError::Io {
                call: "sync",
                path: parent.into(),
                source,
            })?;
    }
    Ok(key)
}
