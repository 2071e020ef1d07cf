//! Archiving: the oldest records of a log go into a file of their own, a segment.
//!
//! A segment is an export of records `first` to `last`, whose first line but one names the hash of the
//! record before `first` and that of `last`, signed by the log's key under a context of its own. The
//! log keeps that line, so that its chain still begins where the last segment ends, and every segment
//! where the one before it does.
//!
//! # Order of steps
//!
//! 1. The segment is written beside its name, synced, read back, verified, and gets its name.
//! 2. In one transaction its line is kept, its records are removed, and that is recorded.
//!
//! A crash before 2 leaves every record in the log. A segment that has its name by then is complete:
//! the next run finds it, verifies it, and goes on with 2. A `.part` file is worth nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use database::{Connection, Database, params};
use time::OffsetDateTime;

use super::archives::verify_segment;
use super::chain::Chain;
use super::encoding::{Hash, number, text};
use super::entry::{LogId, StoredEntry};
use super::line::{Line, write_line};
use super::segment::{Segment, base, read_with_files};
use super::store::{self, APPENDING};
use super::{AuditError, AuditRecord};
use keys::Hashing;

/// A segment and the file that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archived {
    /// The segment.
    pub segment: Segment,
    /// The file.
    pub file: PathBuf,
    /// The SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// What a log knows about a segment of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The log's id.
    pub log: LogId,
    /// The segment.
    pub segment: Segment,
    /// The name that its file was given.
    pub name: String,
    /// Where the file was written, when that is known.
    pub file: Option<PathBuf>,
    /// The SHA-256 of the file, in hexadecimal.
    pub sha256: Option<String>,
}

impl Chain {
    /// Writes the records that are from before `before` into a new file in `dir`, and removes them
    /// from the log. `record` makes the record of that, which is appended; its `detail` is set here.
    /// `None` when there is nothing to be archived.
    ///
    /// # Errors
    /// [`AuditError`]; the log has all its records then. [`AuditError::Tampered`] when its own
    /// records do not verify: they stay where they are, to be looked at.
    pub fn archive(
        &self,
        db: &Database,
        name: &str,
        dir: &Path,
        before: OffsetDateTime,
        record: AuditRecord,
    ) -> Result<Option<Archived>, AuditError> {
        // Another one there at the same time would write the same files.
        let _lock = lock(dir)?;
        let Some(archived) = self.write_segment(db, name, dir, before, record.time)? else {
            return Ok(None);
        };
        self.remove_segment(db, &archived, record)?;
        // What is removed leaves room in the database's file; that it becomes smaller is a courtesy,
        // for which there may be no room.
        if let Err(e) = db.shrink() {
            log::warn!("the database of the log {name} keeps its size: {e}");
        }
        Ok(Some(archived))
    }

    pub(super) fn write_segment(
        &self,
        db: &Connection,
        name: &str,
        dir: &Path,
        before: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<Option<Archived>, AuditError> {
        // One moment of a log that others append to.
        let snapshot = db.moment()?;
        let (last_archived, previous) = base(&snapshot)?;
        let first = last_archived + 1;
        let stem = stem(name, first);
        if let Some(file) = complete(dir, &stem)? {
            return match self.verified(&file) {
                Ok((segment, sha256)) => Ok(Some(Archived {
                    segment,
                    file,
                    sha256,
                })),
                Err(AuditError::Tampered { what } | AuditError::Export { what, .. }) => {
                    Err(AuditError::SegmentTaken { path: file, what })
                }
                Err(e) => Err(e),
            };
        }
        let Some((last, hash)) = last_before(&snapshot, before)? else {
            return Ok(None);
        };
        let segment = Segment {
            first,
            last,
            previous,
            hash,
            time: text(now)?,
            signature: Vec::new(),
        };
        let segment = segment.sign(&self.signer, self.log_id())?;
        let file = dir.join(file_name(&stem, last));
        let part = file.with_extension("part");
        let written = self.write_file(&snapshot, name, &segment, &part);
        // What is written is looked at without keeping a server waiting.
        drop(snapshot);
        let written = written.and_then(|()| self.verified(&part));
        let (_, sha256) = written.inspect_err(|_| {
            // What is worth nothing takes no room.
            let _ = fs::remove_file(&part);
        })?;
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            &part,
            rustix::fs::CWD,
            &file,
            rustix::fs::RenameFlags::NOREPLACE,
        )
        .or_else(|e| match e {
            // Not every file system knows that; nothing is there, as `complete` has seen.
            rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS => rustix::fs::rename(&part, &file),
            e => Err(e),
        })
        .map_err(|e| io_error("rename", &part, e.into()))?;
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|e| io_error("sync", dir, e))?;
        Ok(Some(Archived {
            segment,
            file,
            sha256,
        }))
    }

    fn write_file(
        &self,
        db: &Connection,
        name: &str,
        segment: &Segment,
        part: &Path,
    ) -> Result<(), AuditError> {
        match fs::remove_file(part) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(io_error("remove", part, e)),
            _ => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(part)
            .map_err(|e| io_error("create", part, e))?;
        let mut out = BufWriter::new(&file);
        write_line(&mut out, &Line::Log(self.exported(name)))?;
        write_line(&mut out, &Line::Segment(segment.clone()))?;
        let mut checkpoints = store::read_checkpoints(db)?.into_iter().peekable();
        store::stored_until(db, segment.first - 1, segment.last, |stored| {
            let seq = stored.entry.seq;
            write_line(&mut out, &Line::Record(stored))?;
            while let Some(checkpoint) = checkpoints.next_if(|c| c.seq <= seq) {
                write_line(&mut out, &Line::Checkpoint(checkpoint))?;
            }
            Ok::<_, AuditError>(())
        })?;
        out.flush().map_err(AuditError::Write)?;
        drop(out);
        file.sync_all().map_err(|e| io_error("sync", part, e))
    }

    /// The segment in a file, when it is a complete one of this log, and the file's SHA-256.
    fn verified(&self, path: &Path) -> Result<(Segment, String), AuditError> {
        let file = File::open(path).map_err(|e| io_error("open", path, e))?;
        let mut file = Hashing::new(file);
        let verified = verify_segment(BufReader::new(&mut file), self.log_id(), self.public_key());
        match verified {
            Ok(segment) => Ok((segment, file.hex())),
            Err(AuditError::Tampered { what }) => {
                let what = format!("{what} ({})", path.display());
                Err(AuditError::tampered(what))
            }
            Err(e) => Err(e),
        }
    }

    fn remove_segment(
        &self,
        db: &Database,
        archived: &Archived,
        mut record: AuditRecord,
    ) -> Result<(), AuditError> {
        let Segment {
            first,
            last,
            previous,
            hash,
            time,
            signature,
        } = &archived.segment;
        record.event.detail = Some(format!(
            "records {first} to {last} to {}",
            archived.file.display()
        ));
        let record = [record];
        db.transaction(APPENDING, |db| {
            // Another host may be archiving, too.
            store::lock(db)?;
            let (at, before) = base(db)?;
            let sql = "SELECT hash FROM audit WHERE seq = ?";
            let stored: Option<Vec<u8>> = db.value(sql, params![number(*last)?])?;
            if (at + 1, &before) != (*first, previous) || stored.as_deref() != Some(hash.as_slice()) {
                return Err(AuditError::SegmentTaken {
                    path: archived.file.clone(),
                    what: "it does not fit to what the log has: it was archived at the same time, or from \
                           a state of the log that was lost since"
                        .into(),
                });
            }
            db.execute(
                "INSERT INTO audit_segments (first, last, previous, hash, time, signature, file, sha256) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                params![
                    number(*first)?,
                    number(*last)?,
                    previous,
                    hash,
                    time,
                    signature.as_slice(),
                    archived.file.to_str(),
                    archived.sha256,
                ],
            )?;
            for table in ["audit", "audit_checkpoints"] {
                let sql = format!("DELETE FROM {table} WHERE seq <= ?");
                db.execute(&sql, params![number(*last)?])?;
            }
            self.append(db, &record)
        })
    }
}

/// Holds a directory against others on this host that do so too, where its file system has locks.
pub(super) fn lock(dir: &Path) -> Result<File, AuditError> {
    use rustix::fs::{FlockOperation, flock};
    let lock = File::open(dir).map_err(|e| io_error("open", dir, e))?;
    if let Err(e) = flock(&lock, FlockOperation::LockExclusive) {
        log::warn!("{} cannot be locked: {e}", dir.display());
    }
    Ok(lock)
}

/// How the file of a segment begins.
fn stem(log: &str, first: u64) -> String {
    format!("{}-{first:012}-", log.replace('/', "-"))
}

fn file_name(stem: &str, last: u64) -> String {
    format!("{stem}{last:012}.jsonl")
}

/// The segments of the log in `db`, which exports call `name`, the oldest first.
///
/// # Errors
/// [`AuditError`].
pub fn kept(db: &Connection, name: &str) -> Result<Vec<Kept>, AuditError> {
    let log = store::exported(db, name)?.log;
    let segments = read_with_files(db)?.into_iter();
    let kept = segments.map(|(segment, (file, sha256))| Kept {
        log,
        name: file_name(&stem(name, segment.first), segment.last),
        segment,
        file: file.map(PathBuf::from),
        sha256,
    });
    Ok(kept.collect())
}

/// The last record that is from before that time, with all that are before it.
fn last_before(db: &Connection, before: OffsetDateTime) -> Result<Option<(u64, Hash)>, AuditError> {
    use time::format_description::well_known::Rfc3339;
    let mut last: Option<(u64, Hash)> = None;
    loop {
        let after = last.map_or(0, |(seq, _)| seq);
        let page = store::page(db, after, i64::MAX.unsigned_abs())?;
        if page.is_empty() {
            return Ok(last);
        }
        for StoredEntry { entry, hash } in page {
            // Where a clock was set back, what is behind the first newer record stays with it.
            let time = OffsetDateTime::parse(&entry.time, &Rfc3339);
            if !time.is_ok_and(|time| time < before) {
                return Ok(last);
            }
            let hash: Result<Hash, _> = hash.try_into();
            let hash = hash.map_err(|_| AuditError::tampered("the hash of a record is none"))?;
            last = Some((entry.seq, hash));
        }
    }
}

/// A segment that an earlier run has completed and not removed from the log.
fn complete(dir: &Path, stem: &str) -> Result<Option<PathBuf>, AuditError> {
    let entries = fs::read_dir(dir).map_err(|e| io_error("read", dir, e))?;
    for entry in entries {
        let entry = entry.map_err(|e| io_error("read", dir, e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(stem) && name.ends_with(".jsonl") {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn io_error(call: &'static str, path: &Path, source: std::io::Error) -> AuditError {
    AuditError::Io {
        call,
        path: path.into(),
        source,
    }
}
