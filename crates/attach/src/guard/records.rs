//! Records about DEKs in the audit log of the installation.
//!
//! That a DEK is handed to a data plane is recorded before it is done, and not done otherwise. That
//! one was destroyed is recorded afterwards: a log that cannot be written must not keep a key alive.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use uuid::Uuid;

use crate::status::Reason;
use disks::Disk;
use installation::Installation;
use installation::KeyEvent;

/// How long after a failure a record is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How long the end of an attach waits for records that are not written yet.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was done with a DEK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Given to a data plane when the disk was attached.
    HandOver,
    /// Given to it again after a revocation.
    Restore,
    /// Destroyed: it is in no memory any more.
    Destroy,
}

impl Operation {
    /// As the audit log names it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::HandOver => "DekHandOver",
            Self::Restore => "DekRestore",
            Self::Destroy => "DekDestroy",
        }
    }
}

/// One record.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) time: OffsetDateTime,
    pub(crate) operation: Operation,
    pub(crate) disk: Uuid,
    /// The disk's name.
    pub(crate) name: String,
    /// The key version that wraps the DEK.
    pub(crate) key_url: String,
    pub(crate) reason: Option<Reason>,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (time, operation) = (self.time, self.operation.as_str());
        write!(
            f,
            "{time} {operation} {} ({}) {}",
            self.name, self.disk, self.key_url
        )?;
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// Writes audit records in the order in which they were given, each until it is written.
pub(crate) struct Recorder {
    records: Sender<Record>,
    /// How many are not written yet.
    waiting: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Recorder {
    pub(crate) fn spawn(
        append: impl Fn(&Record) -> Result<(), String> + Send + 'static,
    ) -> io::Result<Self> {
        let (records, queue) = channel::<Record>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let left = waiting.clone();
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || {
                while let Ok(record) = queue.recv() {
                    let mut known = false;
                    while let Err(error) = append(&record) {
                        if !std::mem::replace(&mut known, true) {
                            log::error!("not yet in the audit log, since {error}: {record}");
                        }
                        std::thread::sleep(RETRY);
                    }
                    left.fetch_sub(1, Ordering::AcqRel);
                }
            })?;
        Ok(Self {
            records,
            waiting,
            thread,
        })
    }

    /// Whether all are written.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.load(Ordering::Acquire) == 0
    }

    pub(crate) fn put(&self, record: Record) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        // The thread lives for as long as `self` does.
        let _ = self.records.send(record);
    }

    /// Waits for a while until all is written.
    pub(crate) fn finish(self) {
        let Self {
            records, thread, ..
        } = self;
        drop(records);
        let deadline = Instant::now() + PATIENCE;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !thread.is_finished() {
            log::error!("the audit log of the installation could not be written to its end");
        }
    }
}

/// Writes a record, durably.
///
/// # Errors
/// What is wrong, as a part of a sentence.
pub(crate) fn append(installation: &Installation, record: &Record) -> Result<(), String> {
    write(installation, record, false)
}

/// As [`append`], of what was done already, such as that the next data plane has the DEK: a full file system must not
/// have it wait, and with it that the DEK was destroyed.
///
/// # Errors
/// As [`append`].
pub(crate) fn append_done(installation: &Installation, record: &Record) -> Result<(), String> {
    write(installation, record, true)
}

fn write(installation: &Installation, record: &Record, is_done: bool) -> Result<(), String> {
    let id = record.disk;
    let event = KeyEvent {
        time: record.time,
        operation: record.operation.as_str(),
        key_url: &record.key_url,
        disk: Some(&record.name),
        detail: match &record.reason {
            Some(reason) => format!("disk id {id}; {}: {}", reason.code, reason.message),
            None => format!("disk id {id}"),
        },
    };
    let log = installation.audit_log().map_err(|e| e.to_string())?;
    let appended = match is_done {
        true => installation.append_done(&log, event),
        false => installation.append(&log, event),
    };
    appended.map_err(|e| e.to_string())
}

/// As [`append`], of what is done now with a DEK of that disk.
///
/// # Errors
/// As [`append`].
pub(crate) fn record(
    installation: &Installation,
    disk: &Disk,
    operation: Operation,
    key_url: &str,
) -> Result<(), String> {
    let record = Record {
        time: OffsetDateTime::now_utc(),
        operation,
        disk: disk.id(),
        name: disk.name().into(),
        key_url: key_url.into(),
        reason: None,
    };
    append(installation, &record)
}
