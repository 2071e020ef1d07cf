//! Writing a log as the lines of an export.

use std::io::Write;

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
    // One moment of a log that others append to.
    let snapshot = db.moment()?;
    let mut write = |line: Line| write_line(out, &line);
    write(Line::Log(chain.exported(name)))?;
    for segment in segment::read(&snapshot)? {
        write(Line::Segment(segment))?;
    }
    let mut checkpoints = store::read_checkpoints(&snapshot)?.into_iter().peekable();
    if records {
        store::stored(&snapshot, 0, |stored| {
            let seq = stored.entry.seq;
            write(Line::Record(stored))?;
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
