//! The portable form of a log: lines of JSON that can be verified where the database is not.

use std::io::{BufRead, Read, Write};

use serde::{Deserialize, Serialize};

use super::AuditError;
use super::counter::Counter;
use super::entry::{Head, LogId, StoredEntry};
use super::segment::Segment;
use super::signer::PublicKey;

/// The format of the lines.
const FORMAT: u32 = 1;

/// Longest line that is read.
const LINE_LIMIT: u64 = 1 << 20;

/// Whose log it is and which key has signed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportedLog {
    /// The format of what follows.
    format: Format,
    /// What the log belongs to.
    pub name: String,
    /// Its id.
    pub log: LogId,
    /// When it was made, RFC 3339.
    pub created: String,
    /// The key that verifies it.
    pub public_key: PublicKey,
}

impl ExportedLog {
    pub(super) fn new(name: &str, log: LogId, created: String, public_key: PublicKey) -> Self {
        Self {
            format: Format,
            name: name.into(),
            log,
            created,
            public_key,
        }
    }
}

/// [`FORMAT`]; no other one is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
struct Format;

impl From<Format> for u32 {
    fn from(_: Format) -> Self {
        FORMAT
    }
}

impl TryFrom<u32> for Format {
    type Error = String;

    fn try_from(format: u32) -> Result<Self, String> {
        match format {
            FORMAT => Ok(Self),
            _ => Err(format!("format {format} is not known, {FORMAT} is")),
        }
    }
}

/// A line of an export, an object of JSON whose `type` is the name of the variant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Line {
    /// What follows is of this log.
    Log(ExportedLog),
    /// A record and the hash that is stored beside it.
    Record(StoredEntry),
    /// A checkpoint, behind its record.
    Checkpoint(Head),
    /// Records that were archived, or, in the file that has them, those that follow.
    Segment(Segment),
    /// A counter that is not recorded yet.
    Counter(Counter),
    /// The end of the log.
    Head(Head),
}

pub(super) fn write_line(out: &mut dyn Write, line: &Line) -> Result<(), AuditError> {
    serde_json::to_writer(&mut *out, line).map_err(|e| AuditError::Write(e.into()))?;
    out.write_all(b"\n").map_err(AuditError::Write)
}

/// The lines of an export with their numbers. Empty lines are passed over.
pub fn read_export(
    mut from: impl BufRead,
) -> impl Iterator<Item = Result<(usize, Line), AuditError>> {
    let mut number = 0;
    std::iter::from_fn(move || {
        loop {
            number += 1;
            let wrong = |what: String| AuditError::Export { line: number, what };
            let mut text = String::new();
            let read = from.by_ref().take(LINE_LIMIT).read_line(&mut text);
            match read {
                Err(e) => return Some(Err(wrong(e.to_string()))),
                Ok(0) => return None,
                Ok(length) if length as u64 == LINE_LIMIT => {
                    return Some(Err(wrong("it is too long".into())));
                }
                Ok(_) if text.trim().is_empty() => {}
                Ok(_) => {
                    let line = serde_json::from_str(&text).map(|line| (number, line));
                    return Some(line.map_err(|e| wrong(e.to_string())));
                }
            }
        }
    })
}

/// Of which log an export, or its first part, is, and from which record on: what puts segments in
/// order.
///
/// # Errors
/// [`AuditError::Export`] for what is no export.
pub fn export_start(from: impl BufRead) -> Result<(LogId, u64), AuditError> {
    let mut log = LogId::nil();
    let mut behind = 0;
    for line in read_export(from) {
        match line?.1 {
            Line::Log(found) => log = found.log,
            Line::Record(stored) => return Ok((log, stored.entry.seq)),
            // The lines of a log's segments come before its records.
            Line::Segment(segment) => behind = segment.last + 1,
            Line::Checkpoint(_) | Line::Counter(_) | Line::Head(_) => break,
        }
    }
    Ok((log, behind))
}

/// The log and the segment of a file that begins as that of a segment does.
///
/// # Errors
/// [`AuditError::Export`] for what is no export.
pub fn own_segment(from: impl BufRead) -> Result<Option<(LogId, Segment)>, AuditError> {
    let mut lines = read_export(from);
    let mut next = || lines.next().transpose();
    let (
        Some((_, Line::Log(log))),
        Some((_, Line::Segment(segment))),
        Some((_, Line::Record(record))),
    ) = (next()?, next()?, next()?)
    else {
        return Ok(None);
    };
    let its_own = record.entry.seq == segment.first;
    Ok(its_own.then_some((log.log, segment)))
}
