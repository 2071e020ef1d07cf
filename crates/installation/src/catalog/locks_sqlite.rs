//! Locks in the SQLite catalog.

use std::sync::MutexGuard;

use rusqlite::{Connection, TransactionBehavior};

use super::error::CatalogError;
use super::lock_rows::{LOCKS, columns, insert, parse, refuse, refuse_on_going};
use super::locks::{Change, Lock, LockCatalog, LockRecord, LockTarget, LocksHeld};
use super::record::Kind;
use super::sqlite::SqliteCatalog;

/// A transaction that changes nothing, and keeps all others from changing anything until it is dropped.
struct Held<'a>(MutexGuard<'a, Connection>);

impl<'a> Held<'a> {
    fn begin(db: MutexGuard<'a, Connection>) -> Result<Self, CatalogError> {
        db.execute_batch("BEGIN IMMEDIATE")?;
        Ok(Self(db))
    }
}

impl LocksHeld for Held<'_> {}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.execute_batch("ROLLBACK") {
            log::error!("a transaction of the catalog does not end: {error}");
        }
    }
}

impl LockCatalog for SqliteCatalog {
    fn locks(&self) -> Result<Vec<Lock>, CatalogError> {
        self.select(LOCKS, [], parse)
    }

    fn put_lock(&self, record: &LockRecord) -> Result<(), CatalogError> {
        let done = put(&mut self.db(), record);
        self.copied(done)
    }

    fn delete_lock(&self, target: &LockTarget, name: &str) -> Result<bool, CatalogError> {
        let (kind, of) = columns(target);
        let sql = "DELETE FROM locks WHERE kind = ? AND target = ? AND name = ?";
        let done = self.db().execute(sql, [kind, of, name]);
        self.copied(done.map(|count| count > 0).map_err(CatalogError::from))
    }

    fn refuse_locked(&self, kind: Kind, name: &str, change: Change) -> Result<(), CatalogError> {
        refuse(&self.db(), kind, name, change)
    }

    fn hold_unlocked(
        &self,
        kind: Kind,
        name: &str,
        change: Change,
    ) -> Result<Box<dyn LocksHeld + '_>, CatalogError> {
        let held = Held::begin(self.db())?;
        refuse(&held.0, kind, name, change)?;
        Ok(Box::new(held))
    }
}

fn put(db: &mut Connection, record: &LockRecord) -> Result<(), CatalogError> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    refuse_on_going(&transaction, &record.target)?;
    insert(&transaction, record)?;
    Ok(transaction.commit()?)
}
