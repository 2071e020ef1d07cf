//! Verification of what is in files: exports, and segments in their order.

use std::io::BufRead;

use super::AuditError;
use super::entry::{Entry, LogId};
use super::line::{ExportedLog, Line, read_export};
use super::segment::Segment;
use super::signer::PublicKey;
use super::verifier::{Pin, Report, Verifier};

/// Verifies every log of an export.
///
/// Without `pins` this shows that an export is consistent in itself, and with them that it goes on
/// from what was exported earlier: only then is it sure whose key has signed it.
///
/// # Errors
/// [`AuditError::Export`] for what is no export.
pub fn verify_export(from: impl BufRead, pins: &[Pin]) -> Result<Vec<Report>, AuditError> {
    let mut archives = Archives::default();
    archives.read(from, pins)?;
    Ok(archives.finish())
}

/// The logs of several exports and archived segments, each log's segments in their order.
#[derive(Default)]
pub struct Archives {
    logs: Vec<Verifier>,
}

impl Archives {
    /// Verifies a further export, or the next segment of a log.
    ///
    /// # Errors
    /// [`AuditError::Export`] for what is no export.
    pub fn read(&mut self, from: impl BufRead, pins: &[Pin]) -> Result<(), AuditError> {
        self.read_each(from, pins, |_, _| {})
    }

    /// As [`read`](Self::read), with a visit of each record, of whichever log.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_each(
        &mut self,
        from: impl BufRead,
        pins: &[Pin],
        mut visit: impl FnMut(LogId, &Entry),
    ) -> Result<(), AuditError> {
        let mut current: Option<usize> = None;
        for line in read_export(from) {
            let (number, line) = line?;
            if let Line::Log(log) = line {
                if let Some(before) = current {
                    self.logs[before].end_of_part();
                }
                let verifier = self.take(&log, pins);
                self.logs.push(verifier);
                current = Some(self.logs.len() - 1);
                continue;
            }
            let verifier = current.map(|index| &mut self.logs[index]);
            let verifier = verifier.ok_or_else(|| AuditError::Export {
                line: number,
                what: "there is no line of type 'log' before it".into(),
            })?;
            if let Line::Record(stored) = &line {
                visit(verifier.log, &stored.entry);
            }
            verifier.line(line);
        }
        let Some(last) = current else {
            return Err(AuditError::Export {
                line: 1,
                what: "there is no log in the file".into(),
            });
        };
        self.logs[last].end_of_part();
        Ok(())
    }

    /// What was found in each log.
    pub fn finish(self) -> Vec<Report> {
        self.logs.into_iter().map(Verifier::finish).collect()
    }

    /// Where the verification of that log stands: at its beginning, or behind its last segment.
    pub(super) fn take(&mut self, log: &ExportedLog, pins: &[Pin]) -> Verifier {
        let goes_on = |known: &Verifier| {
            (known.log, &known.key, &known.name) == (log.log, &log.public_key, &log.name)
                && known.head.is_none()
        };
        match self.logs.iter().position(goes_on) {
            Some(index) => self.logs.remove(index),
            None => Verifier::new(log, pins),
        }
    }
}

/// Verifies a file that has one segment of that log and nothing else.
pub(super) fn verify_segment(
    from: impl BufRead,
    log: LogId,
    key: &PublicKey,
) -> Result<Segment, AuditError> {
    let mut archives = Archives::default();
    archives.read(from, &[])?;
    let mut logs = archives.logs.into_iter();
    let (Some(verifier), None) = (logs.next(), logs.next()) else {
        return Err(AuditError::tampered("a segment is of another log"));
    };
    if (verifier.log, &verifier.key) != (log, key) {
        return Err(AuditError::tampered("a segment is of another log"));
    }
    match (verifier.finding, verifier.own) {
        (None, Some(own)) => Ok(own),
        (Some(finding), _) => Err(AuditError::tampered(finding.what)),
        (None, None) => Err(AuditError::tampered("a file has no segment")),
    }
}
