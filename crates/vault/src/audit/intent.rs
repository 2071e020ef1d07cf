//! Changes that are recorded before they are made, and their outcomes after.
//!
//! An intent is a record of its own, durable before anything is changed, and a row of
//! `audit_intents` that its outcome removes, both in the transaction of the record. So what a process
//! died over is known: whoever opens the log next finds the row of a process that is gone, and
//! records that the outcome is not known. Of hosts that share a log each does so for its own processes: whether one of
//! another host lives cannot be seen from here.

use std::fs;

use database::{Connection, params};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use time::OffsetDateTime;
use uuid::Uuid;

use super::essential::{INTENT, is_essential};
use super::event::Event;
use super::{APPENDING, AuditError, AuditLog, AuditRecord};

/// The code of a change whose process ended before it could say what became of it.
const UNFINISHED: &str = "Unfinished";

/// A change that is being made.
#[must_use = "its outcome is to be recorded"]
pub struct Intent {
    id: Uuid,
    record: AuditRecord,
}

impl AuditLog {
    /// Records that a change is about to be made; it is durable when this returns. `record` is what
    /// is recorded when it succeeds.
    ///
    /// # Errors
    /// [`AuditError`]; the change must not be made then.
    pub fn begin(&self, record: AuditRecord) -> Result<Intent, AuditError> {
        let is_essential = is_essential(&record.event.operation);
        self.begin_as(record, is_essential)
    }

    /// As [`AuditLog::begin`], of a change that takes something away from somebody though others of the same operation
    /// do not: it is recorded though the file system is full.
    ///
    /// # Errors
    /// [`AuditError`]; the change must not be made then.
    pub fn begin_essential(&self, record: AuditRecord) -> Result<Intent, AuditError> {
        self.begin_as(record, true)
    }

    fn begin_as(&self, record: AuditRecord, is_essential: bool) -> Result<Intent, AuditError> {
        let id = Uuid::new_v4();
        let detail = record.event.detail.clone().unwrap_or_default();
        let record = record.with_detail(format!("{detail}; change {id}"));
        let mut intent = record.clone();
        intent.event.operation.push_str(INTENT);
        let owner = owner(std::process::id(), self.host());
        self.write_as(&intent.event.operation, is_essential, |chain, db| {
            chain.append(db, std::slice::from_ref(&intent))?;
            let event = &record.event;
            db.execute(
                "INSERT INTO audit_intents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                params![
                    id.to_string(),
                    owner,
                    event.caller,
                    event.origin,
                    event.operation,
                    event.key,
                    event.version,
                    event.disk,
                    event.detail,
                ],
            )?;
            Ok(())
        })?;
        Ok(Intent { id, record })
    }

    /// Records the outcome of a change: the code of the refusal or failure, `None` for success. The change is made then,
    /// so that this is done though the file system is full.
    ///
    /// # Errors
    /// [`AuditError`]; the intent stays, and somebody will record that its outcome is not known.
    pub fn end(&self, intent: Intent, refusal: Option<String>) -> Result<(), AuditError> {
        let mut record = intent.record.at(OffsetDateTime::now_utc());
        record.event.code = refusal;
        self.write_as(&record.event.operation, true, |chain, db| {
            let sql = "DELETE FROM audit_intents WHERE id = ?";
            db.execute(sql, params![intent.id.to_string()])?;
            chain.append(db, std::slice::from_ref(&record))
        })
    }

    /// Records of every change whose process is gone that its outcome is not known.
    pub(super) fn note_unfinished(&self) -> Result<(), AuditError> {
        if self.read(|_, db| dead(db, self.host()))?.is_empty() {
            return Ok(());
        }
        let noted = self.db().transaction(APPENDING, |db| {
            // Another process may have done so between the look and the lock.
            let left = dead(db, self.host())?;
            for (id, _) in &left {
                db.execute("DELETE FROM audit_intents WHERE id = ?", params![id])?;
            }
            let records: Vec<_> = left.iter().map(|(_, record)| record.clone()).collect();
            self.chain().append(db, &records)?;
            Ok::<_, AuditError>(left)
        })?;
        for (id, record) in noted {
            log::warn!(
                "a process died over the change {id} ({}, {}): look whether it was made",
                record.event.operation,
                record.event.detail.as_deref().unwrap_or_default()
            );
        }
        Ok(())
    }
}

/// The intents of processes of this host that are gone, as they are to be recorded.
fn dead(db: &Connection, host: Option<&str>) -> Result<Vec<(String, AuditRecord)>, AuditError> {
    let sql = "SELECT id, owner, caller, origin, operation, key, version, disk, detail \
               FROM audit_intents ORDER BY id";
    let all = db.select(sql, &[], |row| {
        let event = Event {
            caller: row.get(2)?,
            origin: row.get(3)?,
            operation: row.get(4)?,
            key: row.get(5)?,
            version: row.get(6)?,
            disk: row.get(7)?,
            detail: row.get(8)?,
            code: Some(UNFINISHED.into()),
        };
        let time = OffsetDateTime::now_utc();
        let (id, owner): (String, String) = (row.get(0)?, row.get(1)?);
        Ok::<_, AuditError>((owner, (id, AuditRecord { time, event })))
    })?;
    let gone = all
        .into_iter()
        .filter(|(owner, _)| !is_alive(owner, host, start));
    Ok(gone.map(|(_, found)| found).collect())
}

/// A process, told from all others; a process that is not there has no start. Hosts are told apart where several share the
/// log.
fn owner(pid: u32, host: Option<&str>) -> String {
    let process = format!("{}/{pid}/{}", boot(), start(pid).as_deref().unwrap_or("-"));
    match host {
        None => process,
        Some(host) => format!("{process}/{host}"),
    }
}

/// Whether the process lives that `owner` names, or may live, on another host than this one. Its start may be hidden from
/// this process, as `hidepid` and systemd's `ProtectProc=` do it: then any process of that number counts for it, and
/// whoever sees more will find out. Better a change whose outcome is noted late than one of a process that is still at it.
fn is_alive(owner: &str, host: Option<&str>, start: impl Fn(u32) -> Option<String>) -> bool {
    let mut parts = owner.splitn(4, '/');
    let (Some(its_boot), Some(pid), Some(its_start)) = (parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    if parts.next() != host {
        return true;
    }
    let Ok(pid) = pid.parse() else {
        return false;
    };
    its_boot == boot()
        && match start(pid) {
            Some(start) => start == its_start,
            None => is_there(pid),
        }
}

/// Whether there is any process of that number, which is told also of those that are hidden in `/proc`.
fn is_there(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

fn boot() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    boot.unwrap_or_default().trim().to_owned()
}

/// When a process was started.
fn start(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in parentheses, may have spaces; the start is field 22 (proc(5)).
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, id};

    use super::*;

    #[test]
    fn a_process_is_not_dead_because_it_is_hidden() {
        let hidden = |_| None;
        for host in [None, Some("a/host")] {
            let own = owner(id(), host);
            assert!(is_alive(&own, host, start));
            assert!(is_alive(&own, host, hidden));
            // Another one that has its number now.
            let end = own.rsplit_once(&start(id()).unwrap()).unwrap().1;
            let before = format!("{}/{}/1{end}", boot(), id());
            assert!(!is_alive(&before, host, start));
            let rebooted = format!("another boot/{}/1{end}", id());
            assert!(!is_alive(&rebooted, host, hidden));
            assert!(is_alive(&rebooted, Some("another"), hidden));

            let mut child = Command::new("true").spawn().unwrap();
            let dead = format!("{}/{}/1{end}", boot(), child.id());
            child.wait().unwrap();
            assert!(!is_alive(&dead, host, hidden));
        }
        for odd in ["", "a", "a/b/c", format!("{}/-1/1", boot()).as_str()] {
            assert!(!is_alive(odd, None, hidden), "{odd}");
        }
    }
}
