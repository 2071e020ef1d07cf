//! Writing a log as the lines of an export.

use std::io::{self, Write};

use database::Connection;

use super::AuditError;
use super::chain::Chain;
use super::line::{Line, write_line};
use super::{counter, segment, store};

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
    // What is not a record is of one moment of a log that others append to. Records do not change, and are read by and by:
    // whoever takes them may be slow, and a server ends a transaction that does nothing for a minute.
    let snapshot = db.moment()?;
    let segments = segment::read(&snapshot)?;
    let checkpoints = store::read_checkpoints(&snapshot)?;
    let counters = counter::read(&snapshot)?;
    let head = store::read_head(&snapshot, chain.log_id())?;
    let last = store::last_stored(&snapshot)?;
    drop(snapshot);
    let archived = segments.last().map(|segment| segment.last);
    let mut write = |line: Line| write_line(out, &line);
    write(Line::Log(chain.exported(name)))?;
    for segment in segments {
        write(Line::Segment(segment))?;
    }
    let mut checkpoints = checkpoints.into_iter().peekable();
    if records {
        store::stored_until_now(db, 0, last, |stored| {
            let seq = stored.entry.seq;
            write(Line::Record(stored))?;
            while let Some(checkpoint) = checkpoints.next_if(|c| c.seq <= seq) {
                write(Line::Checkpoint(checkpoint))?;
            }
            Ok::<_, AuditError>(())
        })?;
        let now = segment::read(db)?.last().map(|segment| segment.last);
        if now != archived {
            let what = "records were archived meanwhile, and may be missing in it: begin it again";
            return Err(AuditError::Write(io::Error::other(what)));
        }
    }
    for checkpoint in checkpoints {
        write(Line::Checkpoint(checkpoint))?;
    }
    for counter in counters {
        write(Line::Counter(counter))?;
    }
    head.map_or(Ok(()), |head| write(Line::Head(head)))
}
