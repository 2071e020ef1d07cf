//! What a vault does by itself when its time has come: the end of deleted keys, and new versions by
//! rotation policies.
//!
//! Nothing that is due may fail what somebody asks for. So each thing that is due stands for itself,
//! a failure is logged, recorded and tried again after a time that grows ([`backoff`]), and a private
//! key in a device, which may hang, is destroyed by [`EmbeddedVault::purge_due`] only, outside of
//! any lock and transaction.
//!
//! # The end of a key in a device
//!
//! 1. The next try is noted, so that of several processes one makes it.
//! 2. The private keys are destroyed; one that is gone already is no error.
//! 3. In one transaction the rows are erased and the purge is recorded, or the refusal is.
//!
//! Before that it may be put off, see [`super::doubt`].
//!
//! A crash between 1 and 3 leaves the rows, and the next try goes on. From the end of its retention
//! time on nobody sees the key: it cannot be recovered, and its name is taken until 3.

use database::{Connection, Mode};
use time::{Duration, OffsetDateTime};

use super::doubt::{WHOLE_VAULT, is_doubted, puts_off};
use super::subject::Subject;
use super::vault::EmbeddedVault;
use crate::audit::{APPENDING, AuditRecord};
use crate::store::{self, DueKind, KeyRow, Retry};
use crate::{Caller, KeyType, VaultError, VaultErrorCode};

/// The audit log's name for the end of a key.
pub(super) const PURGE: &str = "KeyPurge";

/// The pause after a first failure; it doubles with each that follows.
const FIRST_PAUSE: Duration = Duration::minutes(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::DAY;

/// What [`EmbeddedVault::run_due`] did, one line for each thing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// What was done.
    pub done: Vec<String>,
    /// What failed, and why; it is tried again by a later call.
    pub failed: Vec<String>,
}

impl EmbeddedVault {
    /// Does what is due by the vault's own rules: purges keys whose retention time is over, and
    /// rotates those whose policy says so. What fails keeps nothing else from being done, and is
    /// tried again by the first call after a minute, and then after pauses that double up to a day.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`] when it cannot be told what is due.
    pub fn run_due(&self) -> Result<Due, VaultError> {
        // Nothing is made in a deleted vault; the whole of it is purged in time.
        if self.deletion()?.is_some() {
            return Ok(Due::default());
        }
        let mut due = self.purge_due()?;
        let now = self.clock.now();
        let names: Vec<String> = self.read(|db| {
            let mut names = Vec::new();
            for (name, policy) in store::rotation_policies(db)? {
                let waits = waits(db, DueKind::Rotate, &name, now)?;
                if !waits && self.is_due(db, &name, &policy, now)? {
                    names.push(name);
                }
            }
            Ok(names)
        })?;
        for name in names {
            match self.rotate_due(&name) {
                Ok(bundle) => {
                    let line = format!("rotated the key '{name}': {}", bundle.key.kid);
                    due.done.push(line);
                    self.forget_retry(DueKind::Rotate, &name);
                }
                // Another process was faster.
                Err(e) if e.code == VaultErrorCode::Conflict => {}
                Err(e) => {
                    let noted = self.note_failure(&self.db(), DueKind::Rotate, &name);
                    due.failed
                        .push(format!("the key '{name}' was not rotated: {e}"));
                    if let Err(e) = noted {
                        log::error!("key vault '{}': {e}", self.name);
                    }
                }
            }
        }
        Ok(due)
    }

    /// Has the next [`run_due`](Self::run_due) try again at once what has failed.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn end_pauses(&self) -> Result<(), VaultError> {
        store::end_pauses(&self.db(), self.clock.now())
    }

    pub(super) fn in_device(&self) -> bool {
        self.keys.key_type() == KeyType::RsaHsm
    }

    /// Destroys the keys whose retention time is over.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`] when it cannot be told which those are.
    pub fn purge_due(&self) -> Result<Due, VaultError> {
        let now = self.clock.now();
        let names = self.read(|db| expired(db, now))?;
        let mut due = Due::default();
        for name in names {
            match self.purge_one(&name) {
                Ok(true) => due.done.push(format!("purged the key '{name}'")),
                // Another process was faster.
                Ok(false) => {}
                Err(e) => {
                    let line = format!("the key '{name}' was not purged: {e}");
                    due.failed.push(line);
                }
            }
        }
        Ok(due)
    }

    /// Destroys one key whose retention time is over; false when another process does, or did.
    pub(super) fn purge_one(&self, name: &str) -> Result<bool, VaultError> {
        let Some(rows) = self.claim_purge(name)? else {
            return Ok(false);
        };
        let destroyed = self.destroy(&rows);
        let db = self.db();
        let is_over = db.transaction(APPENDING, |db| {
            let now = self.clock.now();
            if store::deleted_key(db, name)?.is_none_or(|row| row.purge_at > now) {
                return Ok(false);
            }
            // The record of this purge would make the clock believed for the next key.
            self.put_off_in_doubt(db)?;
            if destroyed.is_ok() {
                self.erase_rows(db, name)?;
            }
            let record = self.purge_record(name, destroyed.as_ref().err());
            self.chain.append(db, &[record])?;
            Ok::<_, VaultError>(true)
        })?;
        if !is_over {
            return Ok(false);
        }
        self.seen.note(&self.chain, &db);
        destroyed.map(|()| true)
    }

    /// The versions of a key that is to be purged now by this process.
    fn claim_purge(&self, name: &str) -> Result<Option<Vec<KeyRow>>, VaultError> {
        self.db().transaction(Mode::Write, |db| {
            self.must_be_this(db)?;
            let now = self.clock.now();
            let over = store::deleted_key(db, name)?.is_some_and(|row| row.purge_at <= now);
            if !over || waits(db, DueKind::Purge, name, now)? || puts_off(db, name, now)? {
                return Ok(None);
            }
            self.note_failure(db, DueKind::Purge, name)?;
            store::key_versions(db, name, 0, usize::MAX).map(Some)
        })
    }

    /// Destroys, in the caller's transaction, the keys whose retention time is over, if no device
    /// has them; what is to be recorded about that. It fails only where the database does.
    pub(super) fn purge_expired(&self, db: &Connection) -> Result<Vec<AuditRecord>, VaultError> {
        if self.in_device() {
            return Ok(Vec::new());
        }
        let now = self.clock.now();
        let mut records = Vec::new();
        for name in expired(db, now)? {
            if puts_off(db, &name, now)? {
                continue;
            }
            let purged = self.destroy(&store::key_versions(db, &name, 0, usize::MAX)?);
            match &purged {
                Ok(()) => self.erase_rows(db, &name)?,
                Err(e) => {
                    log::error!(
                        "key vault '{}': the key '{name}' was not purged: {e}",
                        self.name
                    );
                    self.note_failure(db, DueKind::Purge, &name)?;
                }
            }
            records.push(self.purge_record(&name, purged.as_ref().err()));
        }
        Ok(records)
    }

    /// Notes what is due and put off because the clock may be wrong; the caller records something then,
    /// after which that is not told from the log any more.
    pub(super) fn put_off_in_doubt(&self, db: &Connection) -> Result<(), VaultError> {
        let now = self.clock.now();
        if !is_doubted(db, now)? {
            return Ok(());
        }
        if store::deletion(db)?.is_some_and(|deletion| deletion.scheduled_purge <= now) {
            puts_off(db, WHOLE_VAULT, now)?;
        }
        for name in expired(db, now)? {
            puts_off(db, &name, now)?;
        }
        Ok(())
    }

    /// Destroys the private keys of those versions.
    pub(super) fn destroy(&self, rows: &[KeyRow]) -> Result<(), VaultError> {
        for row in rows {
            match self.material(row) {
                Ok(material) => self.keys.delete(&material)?,
                // It can be used by nobody, and must not be in the way of its own removal.
                Err(e) if e.code == VaultErrorCode::Tampered => log::warn!("{e}"),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Removes all that there is of a key.
    pub(super) fn erase_rows(&self, db: &Connection, name: &str) -> Result<(), VaultError> {
        store::erase_key(db, name)?;
        store::remove_deleted(db, name)?;
        store::clear_retry(db, DueKind::Purge, name)?;
        store::clear_retry(db, DueKind::Rotate, name)?;
        self.forget_key(name);
        Ok(())
    }

    fn purge_record(&self, name: &str, failure: Option<&VaultError>) -> AuditRecord {
        let detail = match failure {
            None => "the retention time is over".into(),
            Some(e) => format!("the retention time is over, and it is tried again: {e}"),
        };
        let subject = Subject {
            detail: Some(detail),
            ..Subject::key(PURGE, name)
        };
        self.record(&Caller::vault(), &subject, None, failure.map(|e| e.code))
    }

    /// Notes that something that is due is being tried, and when it is next.
    fn note_failure(&self, db: &Connection, kind: DueKind, name: &str) -> Result<(), VaultError> {
        let attempts = store::retry(db, kind, name)?.map_or(0, |retry| retry.attempts);
        let retry = Retry {
            attempts: attempts.saturating_add(1),
            next: self.clock.now() + backoff(attempts),
        };
        store::put_retry(db, kind, name, &retry)
    }

    fn forget_retry(&self, kind: DueKind, name: &str) {
        if let Err(e) = store::clear_retry(&self.db(), kind, name) {
            log::error!("key vault '{}': {e}", self.name);
        }
    }
}

/// The pause after so many failures before this one.
fn backoff(attempts: u32) -> Duration {
    let pause = FIRST_PAUSE * 2_i32.saturating_pow(attempts.min(20));
    pause.min(LONGEST_PAUSE)
}

/// Whether something that failed is to be left alone for now.
fn waits(
    db: &Connection,
    kind: DueKind,
    name: &str,
    now: OffsetDateTime,
) -> Result<bool, VaultError> {
    let retry = store::retry(db, kind, name)?;
    Ok(retry.is_some_and(|retry| retry.attempts > 0 && retry.next > now))
}

/// The keys whose retention time is over and that are to be tried now.
fn expired(db: &Connection, now: OffsetDateTime) -> Result<Vec<String>, VaultError> {
    let mut names = Vec::new();
    for row in store::deleted_keys(db, "", usize::MAX)? {
        if row.purge_at <= now && !waits(db, DueKind::Purge, &row.name, now)? {
            names.push(row.name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_day() {
        assert_eq!(backoff(0), Duration::minutes(1));
        assert_eq!(backoff(3), Duration::minutes(8));
        assert_eq!(backoff(11), Duration::DAY);
        assert_eq!(backoff(u32::MAX), Duration::DAY);
    }
}
