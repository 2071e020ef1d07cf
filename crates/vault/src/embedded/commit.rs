//! Group commit: the uses of keys that end at about the same time share one durable transaction.
//!
//! A use of a key is done in three steps. It is checked on a reading connection; RSA runs outside
//! of any lock; then the same checks are made again in the transaction that records the use, and
//! only they count. So each use is as if it had been done whole inside that transaction, while many
//! wait for one sync of the disk. One of their threads settles for all that wait.
//!
//! The first check only spares RSA for what would be refused. It is left out for a use that was allowed
//! the last time ([`Allowed`](super::allowed::Allowed)).

use std::sync::Arc;
use std::time::Instant;

use database::{Connection, Database};

use super::queue::{KeyUse, Settled, Speculation, Ticket, Turn};
use super::subject::Subject;
use super::uses::note_use;
use super::vault::EmbeddedVault;
use crate::audit::APPENDING;
use crate::refusal;
use crate::store::KeyRow;
use crate::{KeyPermission, VaultError, VaultErrorCode, Verdict};
use traces::Span;

/// How often a use starts again because its key was changed meanwhile.
const RETRIES: usize = 16;

impl EmbeddedVault {
    /// Checks and records a use that has no work, and gives the key version.
    pub(super) fn look(&self, key_use: KeyUse) -> Result<Arc<KeyRow>, VaultError> {
        match self.settle(Arc::new(key_use), Speculation::None)? {
            Settled::Done(row) => Ok(row),
            Settled::Again => Err(busy(&self.name)),
        }
    }

    /// Checks a use, does its work, and records it; gives what the work gave, and the version.
    pub(super) fn work<T>(
        &self,
        key_use: KeyUse,
        work: impl Fn(&KeyRow) -> Result<T, VaultError>,
    ) -> Result<(T, Arc<KeyRow>), VaultError> {
        let key_use = Arc::new(key_use);
        let span = Span::begin(key_use.operation);
        span.set("sealdisk.vault", self.name.clone());
        span.set("sealdisk.key", key_use.key.name.clone());
        let _entered = span.enter();
        span.came_to(self.worked(&key_use, work), |error| error.code.as_str())
    }

    fn worked<T>(
        &self,
        key_use: &Arc<KeyUse>,
        work: impl Fn(&KeyRow) -> Result<T, VaultError>,
    ) -> Result<(T, Arc<KeyRow>), VaultError> {
        for _ in 0..RETRIES {
            let Some(row) = self.row_to_try(key_use)? else {
                // The refusal that counts is the one that is recorded.
                match self.settle(key_use.clone(), Speculation::None)? {
                    Settled::Done(_) | Settled::Again => continue,
                }
            };
            let result = {
                let _working = self.queue.begin();
                work(&row)
            };
            let speculation = Speculation::Ran {
                row,
                result: result.as_ref().map(drop).map_err(|e| e.code),
            };
            match self.settle(key_use.clone(), speculation) {
                Ok(Settled::Done(row)) => {
                    let result = result?;
                    self.allowed.keep(key_use, &row);
                    return Ok((result, row));
                }
                Ok(Settled::Again) => {
                    self.allowed.forget(key_use);
                }
                Err(refusal) => return Err(self.refused(key_use, refusal)),
            }
        }
        Err(busy(&self.name))
    }

    /// The key version that a use is begun with; `None` when it would be refused.
    fn row_to_try(&self, key_use: &KeyUse) -> Result<Option<Arc<KeyRow>>, VaultError> {
        if let Some(row) = self.allowed.get(key_use) {
            return Ok(Some(row));
        }
        match self.read(|db| self.check(db, key_use)) {
            Ok(row) => Ok(Some(Arc::new(row))),
            // Nor can a refusal be recorded, and it would be waited for again.
            Err(away) if away.code == VaultErrorCode::Unreachable => Err(away),
            Err(_) => Ok(None),
        }
    }

    /// A use was refused after its work: it is looked at first the next time. Another process may have taken
    /// the key from everybody, or this work may have had it ready again after that; it does not stay in memory.
    fn refused(&self, key_use: &KeyUse, refusal: VaultError) -> VaultError {
        self.allowed.forget(key_use);
        let code = refusal.code;
        if code.verdict() == Verdict::Refused && code != VaultErrorCode::Forbidden {
            self.forget_key(&key_use.key.name);
        }
        refusal
    }

    /// The checks of a use, as far as the vault knows; the key version that it uses.
    fn check(&self, db: &Connection, key_use: &KeyUse) -> Result<KeyRow, VaultError> {
        self.check_as_known(db, key_use)
            .map_err(|refusal| self.as_far_as_known(db, key_use, refusal))
    }

    fn check_as_known(&self, db: &Connection, key_use: &KeyUse) -> Result<KeyRow, VaultError> {
        let KeyUse {
            caller,
            key,
            permission,
            operation,
        } = key_use;
        self.refuse_deleted(db)?;
        if !self.only_counts(db, key_use)? {
            self.admit(db, caller, operation)?;
        }
        self.authorize(db, caller, *permission)?;
        if *permission == KeyPermission::Get {
            return self.find(db, key);
        }
        let decrypts = matches!(
            permission,
            KeyPermission::UnwrapKey | KeyPermission::Decrypt
        );
        if decrypts && key.version.is_none() {
            let message = "unwrapping needs the key version that wrapped";
            return Err(VaultError::new(VaultErrorCode::BadParameter, message));
        }
        let row = self.find(db, key)?;
        if let Some(refusal) = refusal::unusable(&self.name, &row, self.clock.now()) {
            return Err(refusal);
        }
        if !row.key_ops.contains(permission.name()) {
            return Err(refusal::operation(&self.name, &row, *permission));
        }
        Ok(row)
    }

    /// Whether this is a check of a running disk, of which only a counter would tell.
    fn only_counts(&self, db: &Connection, key_use: &KeyUse) -> Result<bool, VaultError> {
        if !key_use.caller.purpose.check {
            return Ok(false);
        }
        let subject = Subject::of(key_use.operation, &key_use.key);
        let record = self.record(&key_use.caller, &subject, None, None);
        Ok(self.chain.is_counted(db, &record)?)
    }

    fn settle(
        &self,
        key_use: Arc<KeyUse>,
        speculation: Speculation,
    ) -> Result<Settled, VaultError> {
        let span = Span::begin("commit audit record");
        let ticket = Ticket::new(key_use, speculation);
        let begun = Instant::now();
        let outcome = match self.queue.wait(&ticket) {
            Turn::Settled(outcome) => outcome,
            Turn::Leads(mut lead) => {
                let db = self.db_since(begun);
                self.settle_all(&db, lead.take());
                ticket.take()
            }
        };
        // Only a thread that panicked in the middle of a batch leaves a ticket without an outcome.
        let outcome = outcome.unwrap_or_else(|| Err(busy(&self.name)));
        span.came_to(outcome, |error| error.code.as_str())
    }

    /// Settles all of `batch` in one transaction, or each by itself when that fails; outcomes are told once they are
    /// durable.
    fn settle_all(&self, db: &Database, batch: &[Arc<Ticket>]) {
        // Disks that run go on when the file system is full.
        let unwraps = |ticket: &Arc<Ticket>| ticket.key_use.permission == KeyPermission::UnwrapKey;
        if batch.iter().any(unwraps) {
            self.place.make_room(db);
        }
        match db.transaction(APPENDING, |db| self.settled(db, batch)) {
            Ok(outcomes) => {
                self.seen.note(&self.chain, db);
                for (ticket, outcome) in batch.iter().zip(outcomes) {
                    ticket.put(outcome);
                }
            }
            // It may be that of one use alone, which takes no other with it.
            Err(error) if batch.len() > 1 && error.may_be_of_one() => {
                for ticket in batch {
                    self.settle_all(db, std::slice::from_ref(ticket));
                }
            }
            // What cannot be recorded is not answered, to nobody of the batch.
            Err(error) => {
                for ticket in batch {
                    let key_use = &ticket.key_use;
                    let subject = Subject::of(key_use.operation, &key_use.key);
                    self.record_failed(db, &key_use.caller, &subject, &error);
                    ticket.put(Err(error.again()));
                }
            }
        }
    }

    /// Settles all of `batch` in a transaction, which may be done again: nothing is told to anybody here. The outcomes, in
    /// the order of the tickets.
    fn settled(
        &self,
        db: &Connection,
        batch: &[Arc<Ticket>],
    ) -> Result<Vec<Result<Settled, VaultError>>, VaultError> {
        self.must_be_this(db)?;
        self.put_off_in_doubt(db)?;
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut records = Vec::with_capacity(batch.len());
        for ticket in batch {
            let outcome = match self.settle_one(db, ticket) {
                Err(failed) if failed.is_of_statement() => return Err(failed),
                outcome => outcome,
            };
            if let Some((used, code)) = recorded(&outcome, &ticket.speculation) {
                let key_use = &ticket.key_use;
                let subject = Subject::of(key_use.operation, &key_use.key);
                let record = self.record(&key_use.caller, &subject, used, code);
                note_use(db, &record)?;
                records.push(self.counted(db, &key_use.caller, record)?);
            }
            outcomes.push(outcome);
        }
        if !records.is_empty() {
            let now = self.clock.now();
            self.chain.append_counted(db, &records, now)?;
        }
        Ok(outcomes)
    }

    fn settle_one(&self, db: &Connection, ticket: &Ticket) -> Result<Settled, VaultError> {
        let row = self.check(db, &ticket.key_use)?;
        Ok(match &ticket.speculation {
            Speculation::None if ticket.key_use.permission == KeyPermission::Get => {
                Settled::Done(Arc::new(row))
            }
            Speculation::Ran { row: tried, .. } if tried.is_same(&row) => {
                Settled::Done(Arc::clone(tried))
            }
            _ => Settled::Again,
        })
    }
}

/// What the audit log says of an outcome: the version that was used and the code of a refusal;
/// `None` when the use starts again.
fn recorded<'a>(
    outcome: &'a Result<Settled, VaultError>,
    speculation: &Speculation,
) -> Option<(Option<&'a str>, Option<VaultErrorCode>)> {
    match outcome {
        Err(refusal) => Some((None, Some(refusal.code))),
        Ok(Settled::Again) => None,
        Ok(Settled::Done(row)) => {
            let code = match speculation {
                Speculation::Ran { result, .. } => result.err(),
                Speculation::None => None,
            };
            Some((Some(&row.version), code))
        }
    }
}

fn busy(vault: &str) -> VaultError {
    VaultError::new(
        VaultErrorCode::Internal,
        format!("a key of the key vault '{vault}' is being changed all the time; try again"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Caller, KeyId, KeySize, NewKey, Permissions, SystemClock, VaultSettings};

    #[test]
    fn a_use_that_fails_takes_nobody_with_it_who_shares_its_transaction() {
        let dir = tempfile::tempdir().unwrap();
        let settings = VaultSettings::default();
        let vault =
            EmbeddedVault::create(dir.path(), "v", &settings, Arc::new(SystemClock)).unwrap();
        let owner = Caller::local(uuid::Uuid::new_v4());
        let all = Permissions::all();
        vault.set_policy(&owner, owner.object_id, &all).unwrap();
        let new = NewKey::new(KeySize::Rsa2048);
        for name in ["good", "bad"] {
            vault.create_key(&owner, name, &new).unwrap();
        }
        let failing = "CREATE TEMP TRIGGER failing BEFORE INSERT ON main.audit WHEN NEW.key = 'bad'
             BEGIN SELECT RAISE(ABORT, 'no'); END";
        vault.db().execute(failing, &[]).unwrap();
        let ticket = |name: &str| {
            let key_use = KeyUse {
                caller: owner.clone(),
                key: KeyId {
                    name: name.into(),
                    version: None,
                },
                operation: "KeyGet",
                permission: KeyPermission::Get,
            };
            Ticket::new(Arc::new(key_use), Speculation::None)
        };
        let batch = ["good", "bad", "good"].map(ticket);
        let before = vault.audit_log().unwrap().len();
        vault.settle_all(&vault.db(), &batch);
        let outcomes = batch.each_ref().map(|ticket| ticket.take().unwrap());
        let [Ok(Settled::Done(_)), Err(failed), Ok(Settled::Done(_))] = outcomes else {
            panic!("the good ones are done, and the bad one is not");
        };
        assert_eq!(failed.code, VaultErrorCode::Internal);
        assert_eq!(vault.audit_log().unwrap().len(), before + 2);
    }
}
