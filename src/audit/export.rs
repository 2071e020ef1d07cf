//! The portable form of a log: lines of JSON that can be verified where the database is not.

use std::io::{BufRead, Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::AuditError;
use super::chain::{Entry, Head, LogId};
use super::counter::{self, Counter};
use super::segment::{self, Segment};
use super::signer::PublicKey;
use super::store::{self, Chain};

/// The format of the lines.
const FORMAT: u32 = 1;
/// Longest line that is read.
const LINE_LIMIT: u64 = 1 << 20;

/// Whose log it is and which key has signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedLog {
    /// What the log belongs to.
    pub name: String,
    /// Its id.
    pub log: LogId,
    /// When it was made, RFC 3339.
    pub created: String,
    /// The key that verifies it.
    pub public_key: PublicKey,
}

/// A line of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// What follows is of this log.
    Log(ExportedLog),
    /// A record and the hash that is stored beside it.
    Record(Entry, Vec<u8>),
    /// A checkpoint, behind its record.
    Checkpoint(Head),
    /// Records that were archived, or, in the file that has them, those that follow.
    Segment(Segment),
    /// A counter that is not recorded yet.
    Counter(Counter),
    /// The end of the log.
    Head(Head),
}

/// A line as JSON has it.
#[derive(Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
enum Json {
    Log {
        format: u32,
        name: String,
        log: LogId,
        created: String,
        public_key: String,
    },
    Record {
        seq: u64,
        time: String,
        caller: String,
        origin: String,
        operation: String,
        key: Option<String>,
        version: Option<String>,
        disk: Option<String>,
        detail: Option<String>,
        code: Option<String>,
        hash: String,
    },
    Checkpoint {
        seq: u64,
        hash: String,
        time: String,
        signature: String,
    },
    Segment {
        first: u64,
        last: u64,
        previous: String,
        hash: String,
        time: String,
        signature: String,
    },
    Counter {
        id: i64,
        caller: String,
        origin: String,
        operation: String,
        key: Option<String>,
        version: Option<String>,
        disk: Option<String>,
        detail: Option<String>,
        code: Option<String>,
        count: u64,
        first: Option<String>,
        last: Option<String>,
        closes: i64,
        window: i64,
    },
    Head {
        seq: u64,
        hash: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        counters: Option<String>,
        time: String,
        signature: String,
    },
}

/// Writes a log as lines; with `records` false, only what [`pins`](super::pins) reads.
///
/// # Errors
/// [`AuditError`].
pub fn write_export(
    db: &Connection,
    chain: &Chain,
    name: &str,
    records: bool,
    out: &mut dyn Write,
) -> Result<(), AuditError> {
    // One moment of a log that others append to.
    let snapshot = db.unchecked_transaction()?;
    let log = ExportedLog {
        name: name.into(),
        log: chain.log_id(),
        created: chain.created().into(),
        public_key: chain.public_key().clone(),
    };
    let mut write = |line: Line| write_line(out, line);
    write(Line::Log(log))?;
    for segment in segment::read(&snapshot)? {
        write(Line::Segment(segment))?;
    }
    let mut checkpoints = store::read_checkpoints(&snapshot)?.into_iter().peekable();
    if records {
        store::stored(&snapshot, 0, |stored| {
            let seq = stored.entry.seq;
            write(Line::Record(stored.entry, stored.hash))?;
            while let Some(checkpoint) = checkpoints.next_if(|c| c.seq <= seq) {
                write(Line::Checkpoint(checkpoint))?;
            }
            Ok::<_, AuditError>(())
        })?;
    }
    for checkpoint in checkpoints {
        write(Line::Checkpoint(checkpoint))?;
    }
    for counter in counter::read(&snapshot)? {
        write(Line::Counter(counter))?;
    }
    store::read_head(&snapshot, chain.log_id())?.map_or(Ok(()), |head| write(Line::Head(head)))
}

pub(super) fn write_line(out: &mut dyn Write, line: Line) -> Result<(), AuditError> {
    serde_json::to_writer(&mut *out, &Json::from(line)).map_err(|e| AuditError::Write(e.into()))?;
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
                Ok(_) => return Some(parse(&text).map(|line| (number, line)).map_err(wrong)),
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
            Line::Record(entry, _) => return Ok((log, entry.seq)),
            // The lines of a log's segments come before its records.
            Line::Segment(segment) => behind = segment.last + 1,
            Line::Checkpoint(_) | Line::Counter(_) | Line::Head(_) => break,
        }
    }
    Ok((log, behind))
}

fn parse(text: &str) -> Result<Line, String> {
    let json: Json = serde_json::from_str(text).map_err(|e| e.to_string())?;
    Ok(match json {
        Json::Log { format, .. } if format != FORMAT => {
            return Err(format!("format {format} is not known, {FORMAT} is"));
        }
        Json::Log {
            name,
            log,
            created,
            public_key,
            ..
        } => Line::Log(ExportedLog {
            name,
            log,
            created,
            public_key: PublicKey(bytes(&public_key)?),
        }),
        Json::Record {
            seq,
            time,
            caller,
            origin,
            operation,
            key,
            version,
            disk,
            detail,
            code,
            hash,
        } => {
            let entry = Entry {
                seq,
                time,
                caller,
                origin,
                operation,
                key,
                version,
                disk,
                detail,
                code,
            };
            Line::Record(entry, bytes(&hash)?)
        }
        Json::Checkpoint {
            seq,
            hash,
            time,
            signature,
        } => Line::Checkpoint(head(seq, &hash, time, &signature)?),
        Json::Segment {
            first,
            last,
            previous,
            hash,
            time,
            signature,
        } => Line::Segment(Segment {
            first,
            last,
            previous: digest(&previous)?,
            hash: digest(&hash)?,
            time,
            signature: bytes(&signature)?,
        }),
        Json::Counter {
            id,
            caller,
            origin,
            operation,
            key,
            version,
            disk,
            detail,
            code,
            count,
            first,
            last,
            closes,
            window,
        } => Line::Counter(Counter {
            id,
            caller,
            origin,
            operation,
            key,
            version,
            disk,
            detail,
            code,
            count,
            first,
            last,
            closes,
            window,
        }),
        Json::Head {
            seq,
            hash,
            counters,
            time,
            signature,
        } => Line::Head(Head {
            counters: counters.as_deref().map(digest).transpose()?,
            ..head(seq, &hash, time, &signature)?
        }),
    })
}

fn head(seq: u64, hash: &str, time: String, signature: &str) -> Result<Head, String> {
    Ok(Head {
        seq,
        hash: digest(hash)?,
        counters: None,
        time,
        signature: bytes(signature)?,
    })
}

fn digest(text: &str) -> Result<super::Hash, String> {
    bytes(text)?
        .try_into()
        .map_err(|_| "its hash is none".to_owned())
}

fn bytes(text: &str) -> Result<Vec<u8>, String> {
    URL_SAFE_NO_PAD.decode(text).map_err(|e| e.to_string())
}

impl From<Line> for Json {
    fn from(line: Line) -> Self {
        let base64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match line {
            Line::Log(log) => Self::Log {
                format: FORMAT,
                name: log.name,
                log: log.log,
                created: log.created,
                public_key: base64(&log.public_key.0),
            },
            Line::Record(entry, hash) => Self::Record {
                seq: entry.seq,
                time: entry.time,
                caller: entry.caller,
                origin: entry.origin,
                operation: entry.operation,
                key: entry.key,
                version: entry.version,
                disk: entry.disk,
                detail: entry.detail,
                code: entry.code,
                hash: base64(&hash),
            },
            Line::Checkpoint(head) => Self::Checkpoint {
                seq: head.seq,
                hash: base64(&head.hash),
                time: head.time,
                signature: base64(&head.signature),
            },
            Line::Segment(segment) => Self::Segment {
                first: segment.first,
                last: segment.last,
                previous: base64(&segment.previous),
                hash: base64(&segment.hash),
                time: segment.time,
                signature: base64(&segment.signature),
            },
            Line::Counter(counter) => Self::Counter {
                id: counter.id,
                caller: counter.caller,
                origin: counter.origin,
                operation: counter.operation,
                key: counter.key,
                version: counter.version,
                disk: counter.disk,
                detail: counter.detail,
                code: counter.code,
                count: counter.count,
                first: counter.first,
                last: counter.last,
                closes: counter.closes,
                window: counter.window,
            },
            Line::Head(head) => Self::Head {
                seq: head.seq,
                hash: base64(&head.hash),
                counters: head.counters.map(|counters| base64(&counters)),
                time: head.time,
                signature: base64(&head.signature),
            },
        }
    }
}
