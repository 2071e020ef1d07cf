//! Verification: walks a chain and names the first record that does not fit.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::ops::RangeInclusive;

use super::AuditError;
use super::counter::{self, Counter};
use super::encoding::Hash;
use super::entry::{Entry, GENESIS, Head, LogId, is_checkpoint};
use super::line::{ExportedLog, Line, read_export};
use super::segment::Segment;
use super::signer::{PublicKey, Purpose};

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
    /// Whose log it is of, as exports call it.
    pub fn log_name(&self) -> &str {
        &self.log.name
    }

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
    /// The number of the last record that fits.
    pub records: u64,
    /// How many of these were archived, and are in no file that was looked at.
    pub archived: u64,
    /// Which of these are missing although other segments of the log were given.
    pub not_given: Vec<RangeInclusive<u64>>,
    /// How many checkpoints that were kept elsewhere the log was compared with.
    pub pins: usize,
    /// The end of the log, when it has one.
    pub head: Option<Head>,
    /// The first thing that does not fit; `None` for an intact log.
    pub finding: Option<Finding>,
}

/// Where a verification stands.
pub(super) struct Verifier {
    pub log: LogId,
    pub key: PublicKey,
    pub name: String,
    pins: BTreeMap<u64, Vec<Head>>,
    pinned: usize,
    /// The last record that fits, and its hash.
    last: u64,
    hash: Hash,
    /// The last record that a good checkpoint, or the end of a segment, witnesses.
    witnessed: u64,
    /// Whether a checkpoint has to follow the last record.
    owed: bool,
    /// What was archived, as far as it is told.
    segments: Vec<Segment>,
    /// The segment whose records were read last.
    pub own: Option<Segment>,
    /// Whether the file of that segment has not ended yet.
    in_segment: bool,
    /// Whether what is read is the log's database, behind all files.
    pub at_log: bool,
    /// Records that were archived and are not looked at.
    archived: Vec<RangeInclusive<u64>>,
    /// The counters that the head has to cover.
    counters: Vec<Counter>,
    pub head: Option<Head>,
    pub finding: Option<Finding>,
}

/// Reads the signed heads and checkpoints out of an earlier export.
///
/// # Errors
/// [`AuditError::Export`] for what is no export, and for one whose signatures do not hold.
pub fn pins(from: impl BufRead) -> Result<Vec<Pin>, AuditError> {
    let mut pins = Vec::new();
    let mut log: Option<ExportedLog> = None;
    let mut counters = Vec::new();
    for line in read_export(from) {
        let (number, line) = line?;
        let wrong = |what: &str| AuditError::Export {
            line: number,
            what: what.into(),
        };
        let (at, purpose) = match line {
            Line::Log(found) => {
                log = Some(found);
                counters.clear();
                continue;
            }
            Line::Counter(counter) => {
                counters.push(counter);
                continue;
            }
            Line::Record(_) | Line::Segment(_) => continue,
            Line::Checkpoint(at) => (at, Purpose::Checkpoint),
            Line::Head(mut at) => {
                let id = log.as_ref().map_or_else(LogId::nil, |log| log.log);
                at.counters = at.counters.or_else(|| counter::digest(id, &counters));
                (at, Purpose::Head)
            }
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
    pub fn new(log: &ExportedLog, pins: &[Pin]) -> Self {
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
            segments: Vec::new(),
            own: None,
            in_segment: false,
            at_log: false,
            archived: Vec::new(),
            counters: Vec::new(),
            head: None,
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

    pub fn line(&mut self, line: Line) {
        match line {
            Line::Record(stored) => self.record(&stored.entry, &stored.hash),
            Line::Checkpoint(checkpoint) => self.checkpoint(&checkpoint),
            Line::Segment(segment) => self.segment(segment),
            Line::Counter(counter) => self.counters.push(counter),
            Line::Head(mut head) => {
                let counters = counter::digest(self.log, &self.counters);
                if head.counters.is_some() && head.counters != counters {
                    self.found(
                        head.seq,
                        "a counter that its signed head covers was changed",
                    );
                }
                head.counters = counters;
                self.head = Some(head);
            }
            Line::Log(_) => {}
        }
    }

    /// Takes what a log says about an archived segment.
    pub fn segment(&mut self, segment: Segment) {
        if self.finding.is_some() {
            return;
        }
        let Segment { first, last, .. } = segment;
        let before = self.segments.iter().find(|known| known.last + 1 == first);
        let after = self.segments.iter().find(|known| known.first == last + 1);
        if !segment.is_signed(&self.key, self.log) {
            self.found(
                first,
                format!("the segment from record {first} was changed"),
            );
        } else if before.is_some_and(|before| before.hash != segment.previous) {
            let what = format!("the segment from record {first} does not follow the one before it");
            self.found(first, what);
        } else if after.is_some_and(|after| after.previous != segment.hash) {
            let what = format!("the segment behind record {last} does not follow that record");
            self.found(last + 1, what);
        } else if self.last == last && self.hash != segment.hash {
            let what = format!("record {last} is not what it was when it was archived");
            self.found(last, what);
        } else if !self.segments.contains(&segment) {
            self.segments.push(segment);
        }
    }

    /// Passes over records that were archived and are in no file that was given: the chain goes on with
    /// the segment that begins at `seq`, or behind the last one before it. Both hashes are signed.
    fn pass_over(&mut self, seq: u64) {
        let with = self.segments.iter().find(|segment| segment.first == seq);
        let behind = self.segments.iter().filter(|segment| segment.last < seq);
        let (last, hash) = match (with, behind.max_by_key(|segment| segment.last)) {
            (Some(with), _) => (seq - 1, with.previous),
            (None, Some(behind)) => (behind.last, behind.hash),
            (None, None) => return,
        };
        if last <= self.last {
            return;
        }
        if self.last > self.witnessed {
            let (from, to) = (self.witnessed + 1, self.last);
            let what = format!(
                "records {from} to {to} are covered by no signature: what followed was cut off, or they \
                 were made up"
            );
            self.found(from, what);
            return;
        }
        self.archived.push(self.last + 1..=last);
        (self.last, self.hash, self.witnessed) = (last, hash, last);
        let beyond = self.pins.split_off(&self.last);
        // What is in the segments cannot be compared here.
        let before = std::mem::replace(&mut self.pins, beyond);
        self.pinned -= before.values().map(Vec::len).sum::<usize>();
        self.compare_pins(self.last);
    }

    fn compare_pins(&mut self, seq: u64) {
        for pin in self.pins.remove(&seq).unwrap_or_default() {
            if pin.hash != self.hash {
                let what = format!(
                    "record {seq}, or one before it, is not what it was when the checkpoint \
                     of {} was taken",
                    pin.time
                );
                self.found(seq, what);
            }
        }
    }

    /// The end of a file, or of a log's part of it: that is a whole segment, or has a signed head. Nothing
    /// else covers its last records.
    pub fn end_of_part(&mut self) {
        if self.finding.is_some() {
            return;
        }
        self.settle_owed();
        let in_segment = std::mem::take(&mut self.in_segment);
        // Its line is all that was left of one that is still to come.
        let announced = self.segments.iter().map(|known| (known.first, known.last));
        let cut_off = match &self.own {
            Some(own) if in_segment => Some((self.last + 1, own.last)),
            _ if self.head.is_none() => announced.filter(|(first, _)| *first > self.last).min(),
            _ => None,
        };
        match cut_off.filter(|(from, to)| from <= to) {
            Some((from, to)) => {
                let what = format!("the segment was cut off: records {from} to {to} are gone");
                self.found(from, what);
            }
            None if !in_segment && self.head.is_none() => {
                self.found(self.last, "its signed head was removed");
            }
            None => {}
        }
    }

    pub fn record(&mut self, entry: &Entry, stored: &[u8]) {
        if self.finding.is_some() {
            return;
        }
        self.settle_owed();
        if entry.seq > self.last + 1 {
            self.pass_over(entry.seq);
        }
        let mut segments = self.segments.iter();
        if let Some(own) = segments.find(|segment| segment.first == entry.seq) {
            self.own = Some(own.clone());
            self.in_segment = true;
        }
        let expected = self.last + 1;
        let own = self.own.as_ref().filter(|_| self.in_segment);
        let signed = own.map(|own| (own.last, own.hash));
        if entry.seq > expected {
            self.found(expected, format!("record {expected} was removed"));
        } else if entry.seq < expected {
            self.found(entry.seq, self.out_of_place(entry.seq));
        } else if let Some((end, _)) = signed.filter(|(end, _)| *end < expected) {
            let what = format!("record {expected} is behind the end of its segment, record {end}");
            self.found(expected, what);
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
        self.compare_pins(expected);
        match signed.filter(|(end, _)| *end == expected) {
            Some((_, signed)) if signed != hash => {
                let what = self.rewritten(expected);
                self.found(self.witnessed + 1, what);
            }
            Some(_) => self.witnessed = expected,
            None => {}
        }
    }

    fn out_of_place(&self, seq: u64) -> String {
        let has_it = |segment: &Segment| segment.first <= seq && seq <= segment.last;
        match (self.segments.iter().any(has_it), self.at_log) {
            (true, true) => format!(
                "the log has record {seq} itself, and a segment that was given has it too: either \
                 'audit archive' was cut off, then repeat it with the same --output-dir; or the log was put \
                 back to a state from before that was archived, then leave the segment out to verify the \
                 log as it is, and keep it, since it has what the log has lost"
            ),
            (true, false) => format!("record {seq} is in more than one of the files"),
            (false, _) => format!("record {seq} is out of place"),
        }
    }

    fn settle_owed(&mut self) {
        if self.owed {
            let what = format!("the checkpoint of record {} was removed", self.last);
            self.found(self.last, what);
        }
    }

    pub fn checkpoint(&mut self, checkpoint: &Head) {
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

    pub fn finish(mut self) -> Report {
        if self.finding.is_none() {
            self.settle_owed();
        }
        // All records of a log may be archived.
        let end = self.segments.iter().map(|segment| segment.last).max();
        if let Some(end) = end.filter(|_| self.finding.is_none()) {
            self.pass_over(end + 1);
        }
        let head = self.head.take();
        match &head {
            // The file of a segment has another end.
            None if !self.at_log && self.own.as_ref().is_some_and(|own| own.last == self.last) => {}
            None => self.found(self.last, "its signed head was removed"),
            Some(head) if !head.is_signed(&self.key, Purpose::Head, self.log) => {
                let what = "its signed head was changed, or a counter that it covers was";
                self.found(head.seq, what);
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
            archived: self.archived.iter().map(|r| r.end() - r.start() + 1).sum(),
            not_given: match self.own {
                Some(_) => self.archived,
                None => Vec::new(),
            },
            pins: self.pinned,
            head,
            finding: self.finding,
        }
    }
}
