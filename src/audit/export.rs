//! The portable form of a log: lines of JSON that can be verified where the database is not.

use std::io::{BufRead, Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::AuditError;
use super::chain::{Entry, Head, LogId};
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
    Head {
        seq: u64,
        hash: String,
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
    store::read_head(&snapshot)?.map_or(Ok(()), |head| write(Line::Head(head)))
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
        Json::Head {
            seq,
            hash,
            time,
            signature,
        } => Line::Head(head(seq, &hash, time, &signature)?),
    })
}

fn head(seq: u64, hash: &str, time: String, signature: &str) -> Result<Head, String> {
    Ok(Head {
        seq,
        hash: bytes(hash)?
            .try_into()
            .map_err(|_| "its hash is none".to_owned())?,
        time,
        signature: bytes(signature)?,
    })
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
            Line::Head(head) => Self::Head {
                seq: head.seq,
                hash: base64(&head.hash),
                time: head.time,
                signature: base64(&head.signature),
            },
        }
    }
}
