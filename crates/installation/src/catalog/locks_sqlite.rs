//! Locks in the SQLite catalog.

use super::error::CatalogError;
use super::lock_rows::{LOCKS, columns, insert, parse};
use super::locks::{Lock, LockCatalog, LockRecord, LockTarget};
use super::sqlite::SqliteCatalog;

impl LockCatalog for SqliteCatalog {
    fn locks(&self) -> Result<Vec<Lock>, CatalogError> {
        self.select(LOCKS, [], parse)
    }

    fn put_lock(&self, record: &LockRecord) -> Result<(), CatalogError> {
        let done = insert(&self.db(), record);
        self.copied(done)
    }

    fn delete_lock(&self, target: &LockTarget, name: &str) -> Result<bool, CatalogError> {
        let (kind, of) = columns(target);
        let sql = "DELETE FROM locks WHERE kind = ? AND target = ? AND name = ?";
        let done = self.db().execute(sql, [kind, of, name]);
        self.copied(done.map(|count| count > 0).map_err(CatalogError::from))
    }
}
