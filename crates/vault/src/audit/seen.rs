//! How far a log was seen to reach, beside its database: `vault.seen`, `audit.seen`.
//!
//! A database that was put back to an earlier state is whole in itself, on a server too. So is `cp vault.db` beside a
//! running server, which misses what is in the write-ahead log. So whoever appends writes the signed head,
//! in the form of an export, into a file of its own as well, after the transaction is durable and without
//! a sync: it may fall behind with a loss of power, and is never ahead of the log. A log that ends before
//! it, or has another record in that place, is not the one that was seen last. The file is then left as it
//! is, as evidence, until somebody removes it.
//!
//! That is looked at when a log is opened and before each time that the file is written, by what this process has noted
//! and by what others have: a log that is put back under those who have it open is gone on with by them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use database::{Connection, params};

use super::AuditError;
use super::chain::Chain;
use super::entry::Head;
use super::line::{Line, write_line};
use super::segment;
use super::store;
use super::verifier::{Finding, Pin, pins};

/// The file's length: what is not needed is empty lines, so that it is written in one piece over what was
/// there.
const LENGTH: usize = 2048;

/// The file that says how far a log was seen to reach.
pub struct Seen {
    path: PathBuf,
    name: String,
    finding: OnceLock<Finding>,
    noted: Mutex<Noted>,
}

/// What was noted last.
#[derive(Default)]
struct Noted {
    file: Option<File>,
    /// What this process has written into it.
    text: Vec<u8>,
    /// The head in that, or the one that was there when the log was opened.
    head: Option<Head>,
}

impl Seen {
    /// For the log called `name`, which is compared with what was seen. The file is beside `beside`, the database or
    /// what this host has of the log besides, and has its name with another suffix.
    ///
    /// # Errors
    /// [`AuditError`] when the database cannot be read.
    pub fn open(
        chain: &Chain,
        db: &Connection,
        beside: &Path,
        name: &str,
    ) -> Result<Self, AuditError> {
        let seen = Self {
            path: beside.with_extension("seen"),
            name: name.into(),
            finding: OnceLock::new(),
            noted: Mutex::default(),
        };
        if let Some(pin) = last(&seen.path) {
            // Another process may append meanwhile.
            let moment = db.moment()?;
            let end = chain.last(&moment)?;
            let found = match is_of(chain, &pin) {
                true => differs(&moment, end, pin.at())?,
                false => Some(ANOTHER.into()),
            };
            drop(moment);
            match found {
                Some(what) => seen.found(end, pin.at(), &what),
                None => seen.noted().head = Some(pin.at().clone()),
            }
        }
        Ok(seen)
    }

    /// What shows that the log is not the one that was seen last.
    pub fn finding(&self) -> Option<&Finding> {
        self.finding.get()
    }

    /// Notes how far the log in `db` reaches, after a transaction that is durable, unless it is not the one that was seen
    /// last. It is only a hint, so a failure is told and is no failure of what was done.
    pub fn note(&self, chain: &Chain, db: &Connection) {
        let mut noted = self.noted();
        if self.finding().is_some() {
            return;
        }
        if let Err(e) = self.write(&mut noted, chain, db) {
            log::warn!("cannot write {}: {e}", self.path.display());
        }
        if let Some(finding) = self.finding() {
            log::error!("the log {}: {}", self.name, finding.what);
        }
    }

    fn write(&self, noted: &mut Noted, chain: &Chain, db: &Connection) -> Result<(), AuditError> {
        // What others have noted is read before the log is, which has that by then.
        let by_others = self.by_others(noted);
        // Another process may append meanwhile: the head and the counters that it covers are of one moment.
        let snapshot = db.moment_at_once()?;
        let Some(head) = store::read_head(&snapshot, chain.log_id())? else {
            return Ok(());
        };
        if let Some(pin) = by_others.as_ref().filter(|pin| !is_of(chain, pin)) {
            self.found(head.seq, pin.at(), ANOTHER);
            return Ok(());
        }
        for seen in by_others.iter().map(Pin::at).chain(&noted.head) {
            if let Some(what) = differs(&snapshot, head.seq, seen)? {
                self.found(head.seq, seen, &what);
                return Ok(());
            }
        }
        drop(snapshot);
        let mut text = Vec::with_capacity(LENGTH);
        write_line(&mut text, &Line::Log(chain.exported(&self.name)))?;
        write_line(&mut text, &Line::Head(head.clone()))?;
        text.resize(text.len().max(LENGTH), b'\n');
        noted.head = Some(head);
        let file = match noted.file.take() {
            Some(open) => open,
            None => open(&self.path).map_err(AuditError::Write)?,
        };
        let file = noted.file.insert(file);
        file.write_all_at(&text, 0).map_err(AuditError::Write)?;
        noted.text = text;
        Ok(())
    }

    /// What other processes have noted since this one has.
    fn by_others(&self, noted: &mut Noted) -> Option<Pin> {
        let Ok(text) = fs::read(&self.path) else {
            // Somebody has removed it: the next one has its name.
            noted.file = None;
            return None;
        };
        // What another process is just writing is not whole, and is looked at the next time.
        match text == noted.text {
            true => None,
            false => pins(text.as_slice()).ok()?.pop(),
        }
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what shows that a log that ends with record `end` is not the one that was seen.
    fn found(&self, end: u64, seen: &Head, what: &str) {
        self.finding.get_or_init(|| Finding {
            seq: end.min(seen.seq) + 1,
            what: format!(
                "this installation has seen it with {} records at {}, and now {what}: its database was put \
                 back to an earlier state, or copied without its write-ahead log, and keys and records since \
                 then are missing; restore a newer backup, or, if that was meant, remove {}",
                seen.seq,
                seen.time,
                self.path.display()
            ),
        });
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// The head that was seen last; `None` where none was, or it cannot be read.
fn last(path: &Path) -> Option<Pin> {
    let text = fs::read(path).ok()?;
    match pins(text.as_slice()) {
        Ok(mut found) => found.pop(),
        Err(e) => {
            log::warn!("{} is not looked at: {e}", path.display());
            None
        }
    }
}

const ANOTHER: &str = "it is another log";

/// Whether it is the log that was seen.
fn is_of(chain: &Chain, pin: &Pin) -> bool {
    (pin.log().log, &pin.log().public_key) == (chain.log_id(), chain.public_key())
}

/// In what the log in `db`, which ends with record `end`, differs from the one that was seen.
fn differs(db: &Connection, end: u64, seen: &Head) -> Result<Option<String>, AuditError> {
    if end < seen.seq {
        return Ok(Some(format!("it ends with record {end}")));
    }
    if seen.seq == 0 {
        return Ok(None);
    }
    let sql = "SELECT hash FROM audit WHERE seq = ?";
    let hash: Option<Vec<u8>> = db.value(sql, params![seen.seq.cast_signed()])?;
    let is_there = match hash {
        Some(hash) => hash == seen.hash,
        // A record that was archived is not there any more.
        None => {
            let (archived, hash) = segment::base(db)?;
            archived > seen.seq || (archived, hash) == (seen.seq, seen.hash)
        }
    };
    Ok((!is_there).then(|| format!("record {} is another one, or is gone", seen.seq)))
}
