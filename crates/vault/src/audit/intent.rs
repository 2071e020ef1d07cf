//! Changes that are recorded before they are made, and their outcomes after.
//!
//! An intent is a record of its own, durable before anything is changed, and a row of
//! `audit_intents` that its outcome removes, both in the transaction of the record. So what a process
//! died over is known: whoever opens the log next finds the row of a process that is gone, and
//! records that the outcome is not known.

use std::fs;

use rusqlite::{Connection, TransactionBehavior, params};
use time::OffsetDateTime;
use uuid::Uuid;

use super::event::Event;
use super::{AuditError, AuditLog, AuditRecord};

/// What the operation of an intent ends with in the log.
const INTENT: &str = "Intent";
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
        let id = Uuid::new_v4();
        let detail = record.event.detail.clone().unwrap_or_default();
        let record = record.with_detail(format!("{detail}; change {id}"));
        let mut intent = record.clone();
        intent.event.operation.push_str(INTENT);
        self.write(&intent.event.operation, |chain, db| {
            chain.append(db, std::slice::from_ref(&intent))?;
            let event = &record.event;
            db.execute(
                "INSERT INTO audit_intents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                params![
                    id.to_string(),
                    owner(std::process::id()),
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

    /// Records the outcome of a change: the code of the refusal or failure, `None` for success.
    ///
    /// # Errors
    /// [`AuditError`]; the intent stays, and somebody will record that its outcome is not known.
    pub fn end(&self, intent: Intent, refusal: Option<String>) -> Result<(), AuditError> {
        let mut record = intent.record.at(OffsetDateTime::now_utc());
        record.event.code = refusal;
        self.write(&record.event.operation, |chain, db| {
            let sql = "DELETE FROM audit_intents WHERE id = ?";
            db.execute(sql, [intent.id.to_string()])?;
            chain.append(db, std::slice::from_ref(&record))
        })
    }

    /// Records of every change whose process is gone that its outcome is not known.
    pub(super) fn note_unfinished(&self) -> Result<(), AuditError> {
        let left = self.read(|_, db| dead(db))?;
        if left.is_empty() {
            return Ok(());
        }
        let mut db = self.db();
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut records = Vec::new();
        // Another process may have done so between the look and the lock.
        for (id, record) in dead(&transaction)? {
            log::warn!(
                "a process died over the change {id} ({}, {}): look whether it was made",
                record.event.operation,
                record.event.detail.as_deref().unwrap_or_default()
            );
            transaction.execute("DELETE FROM audit_intents WHERE id = ?", [id])?;
            records.push(record);
        }
        self.chain().append(&transaction, &records)?;
        Ok(transaction.commit()?)
    }
}

/// The intents of processes that are gone, as they are to be recorded.
fn dead(db: &Connection) -> Result<Vec<(String, AuditRecord)>, AuditError> {
    let sql = "SELECT id, owner, caller, origin, operation, key, version, disk, detail \
               FROM audit_intents ORDER BY id";
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let its: String = row.get(1)?;
        let pid = its.split('/').nth(1).and_then(|pid| pid.parse().ok());
        if pid.is_some_and(|pid| owner(pid) == its) {
            continue;
        }
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
        let record = AuditRecord { time, event };
        found.push((row.get(0)?, record));
    }
    Ok(found)
}

/// A process, told from all others; a process that is not there has no start.
fn owner(pid: u32) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command's name, in parentheses, may have spaces; the start is field 22 (proc(5)).
    let start = stat.rsplit_once(')').map(|(_, rest)| rest);
    let start = start.and_then(|rest| rest.split_whitespace().nth(19));
    format!("{}/{pid}/{}", boot.trim(), start.unwrap_or("-"))
}
