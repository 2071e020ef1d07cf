//! Verification: walks a chain and names the first record that does not fit.

use std::collections::BTreeMap;
use std::io::BufRead;

use rusqlite::Connection;

use super::AuditError;
use super::chain::{Entry, GENESIS, Hash, Head, LogId, is_checkpoint};
use super::export::{ExportedLog, Line, read_export};
use super::signer::{PublicKey, Purpose};
use super::store::{self, Chain};

/// What does not fit, and where it shows first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The number of the record; 0 when the log as a whole is concerned.
    pub seq: u64,
    /// What is wrong, for a person.
    pub what: String,
}

/// A signed head or checkpoint that was exported earlier and kept elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    log: ExportedLog,
    at: Head,
}

impl Pin {
    pub(super) fn log(&self) -> &ExportedLog {
        &self.log
    }

    pub(super) fn at(&self) -> &Head {
        &self.at
    }
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whose log it is.
    pub name: String,
    /// Its id.
    pub log: LogId,
    /// How many records fit.
    pub records: u64,
    /// How many checkpoints that were kept elsewhere the log was compared with.
    pub pins: usize,
    /// The end of the log, when it has one.
    pub head: Option<Head>,
    /// The first thing that does not fit; `None` for an intact log.
    pub finding: Option<Finding>,
}

/// Where a verification stands.
struct Verifier {
    log: LogId,
    key: PublicKey,
    name: String,
    pins: BTreeMap<u64, Vec<Head>>,
    pinned: usize,
    /// The last record that fits, and its hash.
    last: u64,
    hash: Hash,
    /// The last record that a good checkpoint witnesses.
    witnessed: u64,
    /// Whether a checkpoint has to follow the last record.
    owed: bool,
    finding: Option<Finding>,
}

impl Chain {
    /// Verifies the log in `db`, also against checkpoints of it that were kept elsewhere.
    ///
    /// # Errors
    /// [`AuditError`] when it cannot be read; what does not fit is in the report.
    pub fn verify(&self, db: &Connection, name: &str, pins: &[Pin]) -> Result<Report, AuditError> {
        let log = ExportedLog {
            name: name.into(),
            log: self.log_id(),
            created: self.created().into(),
            public_key: self.public_key().clone(),
        };
        verify_log(db, &log, pins)
    }
}

/// Verifies the log in `db` by the public key that is in it: without `pins`, this shows that it is
/// consistent in itself.
///
/// # Errors
/// [`AuditError`] when it cannot be read; what does not fit is in the report.
pub fn verify_database(db: &Connection, name: &str, pins: &[Pin]) -> Result<Report, AuditError> {
    verify_log(db, &store::exported(db, name)?, pins)
}

fn verify_log(db: &Connection, log: &ExportedLog, pins: &[Pin]) -> Result<Report, AuditError> {
    // One moment of a log that others append to.
    let snapshot = db.unchecked_transaction()?;
    let mut verifier = Verifier::new(log, pins);
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
    Ok(verifier.finish(store::read_head(&snapshot)?))
}

/// Verifies every log of an export.
///
/// Without `pins` this shows that an export is consistent in itself, and with them that it goes on
/// from what was exported earlier: only then is it sure whose key has signed it.
///
/// # Errors
/// [`AuditError::Export`] for what is no export.
pub fn verify_export(from: impl BufRead, pins: &[Pin]) -> Result<Vec<Report>, AuditError> {
    let mut reports = Vec::new();
    let mut current: Option<(Verifier, Option<Head>)> = None;
    let mut end = |current: &mut Option<(Verifier, Option<Head>)>| {
        if let Some((verifier, head)) = current.take() {
            reports.push(verifier.finish(head));
        }
    };
    for line in read_export(from) {
        let (number, line) = line?;
        if let Line::Log(log) = line {
            end(&mut current);
            current = Some((Verifier::new(&log, pins), None));
            continue;
        }
        let Some((verifier, head)) = current.as_mut() else {
            return Err(AuditError::Export {
                line: number,
                what: "there is no line of type 'log' before it".into(),
            });
        };
        match line {
            Line::Record(entry, hash) => verifier.record(&entry, &hash),
            Line::Checkpoint(checkpoint) => verifier.checkpoint(&checkpoint),
            Line::Head(found) => *head = Some(found),
            Line::Log(_) => {}
        }
    }
    end(&mut current);
    Ok(reports)
}

/// Reads the signed heads and checkpoints out of an earlier export.
///
/// # Errors
/// [`AuditError::Export`] for what is no export, and for one whose signatures do not hold.
pub fn pins(from: impl BufRead) -> Result<Vec<Pin>, AuditError> {
    let mut pins = Vec::new();
    let mut log: Option<ExportedLog> = None;
    for line in read_export(from) {
        let (number, line) = line?;
        let wrong = |what: &str| AuditError::Export {
            line: number,
            what: what.into(),
        };
        let (at, purpose) = match line {
            Line::Log(found) => {
                log = Some(found);
                continue;
            }
            Line::Record(..) => continue,
            Line::Checkpoint(at) => (at, Purpose::Checkpoint),
            Line::Head(at) => (at, Purpose::Head),
        };
        let log = log
            .clone()
            .ok_or_else(|| wrong("there is no line of type 'log' before it"))?;
        if !at.is_signed(&log.public_key, purpose, log.log) {
            return Err(wrong("its signature is not valid"));
        }
        pins.push(Pin { log, at });
    }
    Ok(pins)
}

impl Verifier {
    fn new(log: &ExportedLog, pins: &[Pin]) -> Self {
        let mut verifier = Self {
            log: log.log,
            key: log.public_key.clone(),
            name: log.name.clone(),
            pins: BTreeMap::new(),
            pinned: 0,
            last: 0,
            hash: GENESIS,
            witnessed: 0,
            owed: false,
            finding: None,
        };
        for pin in pins.iter().filter(|pin| pin.log.name == log.name) {
            verifier.pinned += 1;
            if (pin.log.log, &pin.log.public_key) != (log.log, &log.public_key) {
                verifier.found(
                    0,
                    format!(
                        "it is not the log that the checkpoint of {} was taken of: that one was \
                         replaced",
                        pin.at.time
                    ),
                );
            }
            verifier
                .pins
                .entry(pin.at.seq)
                .or_default()
                .push(pin.at.clone());
        }
        verifier
    }

    /// Keeps the first finding only: what comes after it is its consequence.
    fn found(&mut self, seq: u64, what: impl Into<String>) {
        let what = what.into();
        self.finding.get_or_insert(Finding { seq, what });
    }

    fn record(&mut self, entry: &Entry, stored: &[u8]) {
        if self.finding.is_some() {
            return;
        }
        let expected = self.last + 1;
        self.settle_owed();
        if entry.seq > expected {
            self.found(expected, format!("record {expected} was removed"));
        } else if entry.seq < expected {
            self.found(entry.seq, format!("record {} is out of place", entry.seq));
        }
        let hash = entry.hash(self.log, &self.hash);
        if hash != stored {
            let what = format!(
                "record {expected} does not follow from those before it: it was changed, inserted \
                 or moved, or the one before it was"
            );
            self.found(expected, what);
        }
        if self.finding.is_some() {
            return;
        }
        (self.last, self.hash) = (expected, hash);
        self.owed = is_checkpoint(expected);
        for pin in self.pins.remove(&expected).unwrap_or_default() {
            if pin.hash != hash {
                let what = format!(
                    "record {expected}, or one before it, is not what it was when the checkpoint \
                     of {} was taken",
                    pin.time
                );
                self.found(expected, what);
            }
        }
    }

    fn settle_owed(&mut self) {
        if self.owed {
            let what = format!("the checkpoint of record {} was removed", self.last);
            self.found(self.last, what);
        }
    }

    fn checkpoint(&mut self, checkpoint: &Head) {
        if self.finding.is_some() {
            return;
        }
        if checkpoint.seq > self.last {
            let (from, to) = (self.last + 1, checkpoint.seq);
            let what = format!("the end was cut off: records {from} to {to} and beyond are gone");
            self.found(from, what);
        } else if !self.owed || checkpoint.seq != self.last {
            let what = "there is a checkpoint without its record";
            self.found(checkpoint.seq, what);
        } else if checkpoint.hash != self.hash {
            let what = self.rewritten(self.last);
            self.found(self.witnessed + 1, what);
        } else if !checkpoint.is_signed(&self.key, Purpose::Checkpoint, self.log) {
            let what = format!("the checkpoint of record {} was changed", self.last);
            self.found(self.last, what);
        } else {
            self.owed = false;
            self.witnessed = self.last;
        }
    }

    /// The chain fits in itself, but not to what was signed at its end: all hashes were computed
    /// anew. Where that began is known only as far as checkpoints narrow it down.
    fn rewritten(&self, until: u64) -> String {
        format!(
            "records were rewritten, the first of them between {} and {until}: their hashes fit each \
             other, but not what was signed",
            self.witnessed + 1
        )
    }

    fn finish(mut self, head: Option<Head>) -> Report {
        if self.finding.is_none() {
            self.settle_owed();
        }
        match &head {
            None => self.found(self.last, "its signed head was removed"),
            Some(head) if !head.is_signed(&self.key, Purpose::Head, self.log) => {
                self.found(head.seq, "its signed head was changed");
            }
            Some(head) if head.seq > self.last => {
                let (from, to) = (self.last + 1, head.seq);
                self.found(
                    from,
                    format!("the end was cut off: records {from} to {to} are gone"),
                );
            }
            Some(head) if head.seq < self.last => {
                let from = head.seq + 1;
                self.found(
                    from,
                    format!("record {from} was added behind the signed end"),
                );
            }
            Some(head) if head.hash != self.hash => {
                let what = self.rewritten(self.last);
                self.found(self.witnessed + 1, what);
            }
            Some(_) => {}
        }
        let beyond = self.pins.iter().next_back().map(|(seq, heads)| {
            let time = heads.first().map_or("", |head| head.time.as_str());
            (*seq, time.to_owned())
        });
        if let Some((seq, time)) = beyond.filter(|(seq, _)| *seq > self.last) {
            let what = format!(
                "the log had {seq} records when the checkpoint of {time} was taken and has {} now: \
                 it was put back to an earlier state",
                self.last
            );
            self.found(self.last + 1, what);
        }
        Report {
            name: self.name,
            log: self.log,
            records: self.last,
            pins: self.pinned,
            head,
            finding: self.finding,
        }
    }
}
