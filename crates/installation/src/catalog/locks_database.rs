//! Locks in the catalog's database.

use std::sync::MutexGuard;

use database::{Database, Held, Mode, params};

use super::database_catalog::DatabaseCatalog;
use super::error::CatalogError;
use super::lock_rows::{LOCKS, columns, insert, parse, refuse, refuse_on_going};
use super::locks::{Change, Lock, LockCatalog, LockRecord, LockTarget, LocksHeld};
use super::record::Kind;

impl LocksHeld for Held<MutexGuard<'_, Database>> {}

impl LockCatalog for DatabaseCatalog {
    fn locks(&self) -> Result<Vec<Lock>, CatalogError> {
        self.select(LOCKS, &[], parse)
    }

    fn put_lock(&self, record: &LockRecord) -> Result<(), CatalogError> {
        let done = put(&self.db(), record);
        self.copied(done)
    }

    fn delete_lock(&self, target: &LockTarget, name: &str) -> Result<bool, CatalogError> {
        let (kind, of) = columns(target);
        let sql = "DELETE FROM locks WHERE kind = ? AND target = ? AND name = ?";
        let done = self.db().execute(sql, params![kind, of, name]);
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
        let held = Held::begin(self.db(), Mode::Alone)?;
        refuse(&held, kind, name, change)?;
        Ok(Box::new(held))
    }
}

fn put(db: &Database, record: &LockRecord) -> Result<(), CatalogError> {
    db.transaction(Mode::Write, |db| {
        refuse_on_going(db, &record.target)?;
        insert(db, record)
    })
}
