//! Verification of the logs of databases.

use database::Connection;

use super::archives::Archives;
use super::chain::Chain;
use super::line::ExportedLog;
use super::verifier::{Pin, Report};
use super::{AuditError, segment, store};

impl Chain {
    /// Verifies the log in `db`, also against checkpoints of it that were kept elsewhere.
    ///
    /// # Errors
    /// [`AuditError`] when it cannot be read; what does not fit is in the report.
    pub fn verify(&self, db: &Connection, name: &str, pins: &[Pin]) -> Result<Report, AuditError> {
        self.verify_behind(db, name, pins, &mut Archives::default())
    }

    /// As [`verify`](Self::verify), with the segments of it that were archived, which are taken out
    /// of `archives`.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub fn verify_behind(
        &self,
        db: &Connection,
        name: &str,
        pins: &[Pin],
        archives: &mut Archives,
    ) -> Result<Report, AuditError> {
        verify_log(db, &self.exported(name), pins, archives)
    }
}

/// Verifies the log in `db` by the public key that is in it, with the segments of it that were archived,
/// which are taken out of `archives`: without `pins`, this shows that it is consistent in itself.
///
/// # Errors
/// [`AuditError`] when it cannot be read; what does not fit is in the report.
pub fn verify_database(
    db: &Connection,
    name: &str,
    pins: &[Pin],
    archives: &mut Archives,
) -> Result<Report, AuditError> {
    let log = store::exported(db, name)?;
    verify_log(db, &log, pins, archives)
}

fn verify_log(
    db: &Connection,
    log: &ExportedLog,
    pins: &[Pin],
    archives: &mut Archives,
) -> Result<Report, AuditError> {
    // One moment of a log that others append to.
    let snapshot = db.moment()?;
    let mut verifier = archives.take(log, pins);
    verifier.at_log = true;
    for segment in segment::read(&snapshot)? {
        verifier.segment(segment);
    }
    let mut checkpoints = store::read_checkpoints(&snapshot)?.into_iter().peekable();
    store::stored(&snapshot, 0, |stored| {
        let seq = stored.entry.seq;
        verifier.record(&stored.entry, &stored.hash);
        while let Some(checkpoint) = checkpoints.next_if(|c| c.seq <= seq) {
            verifier.checkpoint(&checkpoint);
        }
        Ok::<_, AuditError>(())
    })?;
    for checkpoint in checkpoints {
        verifier.checkpoint(&checkpoint);
    }
    verifier.head = store::read_head(&snapshot, log.log)?;
    Ok(verifier.finish())
}
