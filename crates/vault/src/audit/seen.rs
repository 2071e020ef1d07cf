//! How far a log was seen to reach, beside its database: `vault.seen`, `audit.seen`.
//!
//! A database that was put back to an earlier state is whole in itself, on a server too. So is `cp vault.db` beside a
//! running server, which misses what is in the write-ahead log. So whoever appends writes the signed head,
//! in the form of an export, into a file of its own as well, after the transaction is durable and without
//! a sync: it may fall behind with a loss of power, and is never ahead of the log. A log that ends before
//! it, or has another record in that place, is not the one that was seen last. The file is then left as it
//! is, as evidence, until somebody removes it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use database::{Connection, params};

use super::AuditError;
use super::chain::Chain;
use super::entry::Head;
use super::line::{Line, write_line};
use super::store;
use super::verifier::{Finding, Pin, pins};

/// The file's length: what is not needed is empty lines, so that it is written in one piece over what was
/// there.
const LENGTH: usize = 2048;

/// The file that says how far a log was seen to reach.
pub struct Seen {
    path: PathBuf,
    name: String,
    finding: Option<Finding>,
    file: Mutex<Option<File>>,
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
        let path = beside.with_extension("seen");
        let finding = match last(&path) {
            Some(pin) => compare(chain, db, &path, &pin)?,
            None => None,
        };
        Ok(Self {
            path,
            name: name.into(),
            finding,
            file: Mutex::new(None),
        })
    }

    /// What shows that the log is not the one that was seen last.
    pub fn finding(&self) -> Option<&Finding> {
        self.finding.as_ref()
    }

    /// Notes how far the log in `db` reaches, after a transaction that is durable. It is only a hint, so a
    /// failure is told and is no failure of what was done.
    pub fn note(&self, chain: &Chain, db: &Connection) {
        if self.finding.is_some() {
            return;
        }
        if let Err(e) = self.write(chain, db) {
            log::warn!("cannot write {}: {e}", self.path.display());
        }
    }

    fn write(&self, chain: &Chain, db: &Connection) -> Result<(), AuditError> {
        // Another process may append meanwhile: the head and the counters that it covers are of one moment.
        let snapshot = db.moment()?;
        let Some(head) = store::read_head(&snapshot, chain.log_id())? else {
            return Ok(());
        };
        drop(snapshot);
        let mut text = Vec::with_capacity(LENGTH);
        write_line(&mut text, &Line::Log(chain.exported(&self.name)))?;
        write_line(&mut text, &Line::Head(head))?;
        text.resize(text.len().max(LENGTH), b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match file.take() {
            Some(open) => file.insert(open),
            None => file.insert(open(&self.path).map_err(AuditError::Write)?),
        };
        file.write_all_at(&text, 0).map_err(AuditError::Write)
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

fn compare(
    chain: &Chain,
    db: &Connection,
    path: &Path,
    pin: &Pin,
) -> Result<Option<Finding>, AuditError> {
    let seen: &Head = pin.at();
    let last = chain.last(db)?;
    let what = if (pin.log().log, &pin.log().public_key) != (chain.log_id(), chain.public_key()) {
        "it is another log".to_owned()
    } else if last < seen.seq {
        format!("it ends with record {last}")
    } else {
        let sql = "SELECT hash FROM audit WHERE seq = ?";
        let hash: Option<Vec<u8>> = db.value(sql, params![seen.seq.cast_signed()])?;
        // A record that was archived is not there any more.
        match hash {
            Some(hash) if hash != seen.hash => format!("record {} is another one", seen.seq),
            _ => return Ok(None),
        }
    };
    Ok(Some(Finding {
        seq: last.min(seen.seq) + 1,
        what: format!(
            "this installation has seen it with {} records at {}, and now {what}: its database was put \
             back to an earlier state, or copied without its write-ahead log, and keys and records since \
             then are missing; restore a newer backup, or, if that was meant, remove {}",
            seen.seq,
            seen.time,
            path.display()
        ),
    }))
}
