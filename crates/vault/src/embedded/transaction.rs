//! An operation and its record in the audit log, in one transaction.

use database::{Connection, Database};

use super::subject::{Done, Subject, is_essential, is_for_deleted};
use super::vault::EmbeddedVault;
use crate::audit::{APPENDING, Counted};
use crate::{Caller, VaultError};

impl EmbeddedVault {
    /// Runs one operation: its checks, what it changes and its record in the audit log are one
    /// transaction, which is durable before the caller learns the outcome. A refusal takes the
    /// changes back and is recorded, and so is a failure of the database, where that takes records still; when no record
    /// can be written there is no answer but that.
    ///
    /// Where another host was faster, all of it is done again: what `operation` does besides statements must bear that.
    pub(super) fn audited<T, D: Into<Done<T>>>(
        &self,
        caller: &Caller,
        subject: &Subject<'_>,
        mut operation: impl FnMut(&Connection) -> Result<D, VaultError>,
    ) -> Result<T, VaultError> {
        let db = self.db();
        if is_essential(subject.operation) {
            self.place.make_room(&db);
        }
        let outcome = db.transaction(APPENDING, |db| {
            self.follow_master(db)?;
            self.put_off_in_doubt(db)?;
            // Whoever looks at the vault sees no key whose time is over.
            let purged = self.purge_expired(db)?;
            let each = |record| Counted {
                record,
                window: None,
            };
            let mut records: Vec<Counted> = purged.into_iter().map(each).collect();
            let outcome = self.attempt(db, caller, subject, &mut operation)?;
            let (used, refusal) = match &outcome {
                Ok(done) => (done.version.as_deref(), None),
                Err(refusal) => (None, Some(refusal.code)),
            };
            let record = self.record(caller, subject, used, refusal);
            records.push(self.counted(db, caller, record)?);
            let now = self.clock.now();
            self.chain.append_counted(db, &records, now)?;
            Ok::<_, VaultError>(outcome)
        });
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(failed) => {
                self.record_failed(&db, caller, subject, &failed);
                return Err(failed);
            }
        };
        self.seen.note(&self.chain, &db);
        outcome.map(|done| done.value)
    }

    /// Records by itself what was asked for and has failed in the database: its own transaction came to nothing. Whoever
    /// asked is told of that failure, also when this one fails, too.
    pub(super) fn record_failed(
        &self,
        db: &Database,
        caller: &Caller,
        subject: &Subject<'_>,
        failed: &VaultError,
    ) {
        if !failed.is_of_statement() || !failed.may_be_of_one() {
            return;
        }
        let recorded = db.transaction(APPENDING, |db| {
            self.must_be_this(db)?;
            self.put_off_in_doubt(db)?;
            let record = self.record(caller, subject, None, Some(failed.code));
            let record = self.counted(db, caller, record)?;
            let now = self.clock.now();
            Ok::<_, VaultError>(self.chain.append_counted(db, &[record], now)?)
        });
        match recorded {
            Ok(()) => self.seen.note(&self.chain, db),
            Err(e) => log::error!(
                "key vault '{}': it is not recorded that {} has failed ({failed}): {e}",
                self.name,
                subject.operation
            ),
        }
    }

    /// The outcome of an operation within a transaction, in which nothing is changed by one that is refused. An error
    /// beside that is one of the transaction.
    fn attempt<T, D: Into<Done<T>>>(
        &self,
        db: &Connection,
        caller: &Caller,
        subject: &Subject<'_>,
        operation: &mut impl FnMut(&Connection) -> Result<D, VaultError>,
    ) -> Result<Result<Done<T>, VaultError>, VaultError> {
        db.execute("SAVEPOINT operation", &[])?;
        let allowed = match is_for_deleted(subject.operation) {
            true => Ok(()),
            false => self.refuse_deleted(db),
        };
        let outcome = allowed
            .and_then(|()| self.admit(db, caller, subject.operation))
            .and_then(|()| operation(db));
        let outcome = match outcome {
            Ok(done) => Ok(done.into()),
            Err(failed) if failed.is_of_statement() => return Err(failed),
            Err(refusal) => {
                db.execute("ROLLBACK TO SAVEPOINT operation", &[])?;
                Err(refusal)
            }
        };
        db.execute("RELEASE SAVEPOINT operation", &[])?;
        Ok(outcome)
    }
}
