//! An operation and its record in the audit log, in one transaction.

use rusqlite::{Connection, TransactionBehavior};

use super::subject::{Done, Subject, is_essential, is_for_deleted};
use super::vault::EmbeddedVault;
use crate::audit::Counted;
use crate::{Caller, VaultError};

impl EmbeddedVault {
    /// Runs one operation: its checks, what it changes and its record in the audit log are one
    /// transaction, which is durable before the caller learns the outcome. A refusal takes the
    /// changes back and is recorded; when no record can be written there is no answer but that.
    pub(super) fn audited<T, D: Into<Done<T>>>(
        &self,
        caller: &Caller,
        subject: &Subject<'_>,
        operation: impl FnOnce(&Connection) -> Result<D, VaultError>,
    ) -> Result<T, VaultError> {
        let mut db = self.db();
        if is_essential(subject.operation) {
            self.reserve.make_room(&db);
        }
        let mut transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.follow_master(&transaction)?;
        self.put_off_in_doubt(&transaction)?;
        // Whoever looks at the vault sees no key whose time is over.
        let purged = self.purge_expired(&transaction)?;
        let each = |record| Counted {
            record,
            window: None,
        };
        let mut records: Vec<Counted> = purged.into_iter().map(each).collect();
        let savepoint = transaction.savepoint()?;
        let allowed = match is_for_deleted(subject.operation) {
            true => Ok(()),
            false => self.refuse_deleted(&savepoint),
        };
        let admitted = self.admit(&savepoint, caller, subject.operation);
        let outcome = match allowed.and(admitted).and_then(|()| operation(&savepoint)) {
            Ok(done) => {
                savepoint.commit()?;
                Ok(done.into())
            }
            Err(refusal) => {
                savepoint.finish()?;
                Err(refusal)
            }
        };
        let (used, refusal) = match &outcome {
            Ok(done) => (done.version.as_deref(), None),
            Err(refusal) => (None, Some(refusal.code)),
        };
        let record = self.record(caller, subject, used, refusal);
        records.push(self.counted(&transaction, caller, record)?);
        self.chain
            .append_counted(&transaction, &records, self.clock.now())?;
        transaction.commit()?;
        self.seen.note(&self.chain, &db);
        outcome.map(|done| done.value)
    }
}
