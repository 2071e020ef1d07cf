//! A log's chain, in a database, beside whatever else that holds.

use std::sync::{Mutex, PoisonError};

use database::{Connection, params};
use time::OffsetDateTime;
use uuid::Uuid;

use super::counter::{self, Counter, Counters};
use super::encoding::{Hash, text};
use super::entry::{Entry, GENESIS, Head, LogId, is_checkpoint};
use super::event::Event;
use super::line::ExportedLog;
use super::record::{AuditRecord, Counted};
use super::signer::{PublicKey, Purpose, Signer};
use super::store::{
    insert, lock, read_head, read_head_with_counters, stored, write_checkpoint, write_head,
};
use super::{AuditError, segment};
use keys::SealingKey;

/// The log of a database: its id and the key that signs it.
pub struct Chain {
    log: LogId,
    created: String,
    pub(super) signer: Signer,
    public_key: PublicKey,
    /// The last head whose signature was made or verified here. One that is the same in every byte needs
    /// no verification again.
    signed: Mutex<Option<Head>>,
}

/// The end of a chain within a transaction that appends.
struct End {
    /// The number and the hash of the last record.
    last: (u64, Hash),
    /// The records that were put behind what is stored, with their hashes.
    new: Vec<(Entry, Hash)>,
    counters: Counters,
}

impl Chain {
    /// Makes an empty log in the tables of `db`, in the caller's transaction. Its signing key is
    /// stored sealed under `sealing`.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn create(
        db: &Connection,
        sealing: &SealingKey,
        now: OffsetDateTime,
    ) -> Result<Self, AuditError> {
        let (signer, secret) = Signer::generate()?;
        let (log, public_key) = (Uuid::new_v4(), signer.public_key()?);
        let sealed = sealing
            .seal(&associated(log, &public_key), &secret)
            .map_err(AuditError::Key)?;
        let created = text(now)?;
        // Where another host makes the log at the same time, PostgreSQL has this run again, and its log is found then.
        let made = db.execute(
            "INSERT INTO audit_log VALUES (1, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
            params![
                log.to_string(),
                created,
                public_key.0.as_slice(),
                sealed.as_slice()
            ],
        )?;
        if made == 0 {
            return Err(AuditError::tampered("there is another log in its place"));
        }
        let chain = Self {
            log,
            created,
            signer,
            public_key,
            signed: Mutex::default(),
        };
        let head = Head::sign(
            &chain.signer,
            Purpose::Head,
            log,
            (0, GENESIS),
            None,
            &chain.created,
        )?;
        write_head(db, &head)?;
        Ok(chain)
    }

    /// The log in the tables of `db`; `None` when none was made there yet.
    ///
    /// # Errors
    /// [`AuditError::Tampered`] when its signing key was exchanged, or is sealed under another key
    /// than `sealing`.
    pub fn load(db: &Connection, sealing: &SealingKey) -> Result<Option<Self>, AuditError> {
        let sql = "SELECT log_id, created, public_key, sealed_key FROM audit_log";
        let found = db.first(sql, &[], |row| {
            let (id, created): (String, String) = (row.get(0)?, row.get(1)?);
            let (key, sealed): (Vec<u8>, Vec<u8>) = (row.get(2)?, row.get(3)?);
            Ok::<_, AuditError>((id, created, key, sealed))
        })?;
        let Some((id, created, public_key, sealed)) = found else {
            return Ok(None);
        };
        let log = Uuid::parse_str(&id).map_err(|_| AuditError::tampered("its id is none"))?;
        let public_key = PublicKey(public_key);
        let secret = sealing
            .open(&associated(log, &public_key), &sealed)
            .map_err(|_| AuditError::tampered("its signing key was exchanged"))?;
        Ok(Some(Self {
            log,
            created,
            signer: Signer::from_stored(&secret)?,
            public_key,
            signed: Mutex::default(),
        }))
    }

    /// Stores the signing key sealed under another key, in the caller's transaction.
    ///
    /// # Errors
    /// [`AuditError::Tampered`] when it is not sealed under `old`.
    pub fn reseal(
        &self,
        db: &Connection,
        old: &SealingKey,
        new: &SealingKey,
    ) -> Result<(), AuditError> {
        let sql = "SELECT sealed_key FROM audit_log";
        let sealed: Vec<u8> = db.the_value(sql, &[])?;
        let bound = associated(self.log, &self.public_key);
        let secret = old
            .open(&bound, &sealed)
            .map_err(|_| AuditError::tampered("its signing key was exchanged"))?;
        let sealed = new.seal(&bound, &secret).map_err(AuditError::Key)?;
        let sql = "UPDATE audit_log SET sealed_key = ?";
        db.execute(sql, params![sealed.as_slice()])?;
        Ok(())
    }

    /// The log's id.
    pub fn log_id(&self) -> LogId {
        self.log
    }

    /// When the log was made, RFC 3339.
    pub fn created(&self) -> &str {
        &self.created
    }

    /// What exports say about the log, which they call `name`.
    pub(super) fn exported(&self, name: &str) -> ExportedLog {
        ExportedLog::new(
            name,
            self.log,
            self.created.clone(),
            self.public_key.clone(),
        )
    }

    /// The key that verifies heads and checkpoints.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Appends records and signs the new head, in the caller's transaction, which is one to change something
    /// ([`APPENDING`](super::APPENDING)).
    ///
    /// # Errors
    /// [`AuditError::Tampered`] when the head is not one that this log signed: a chain that
    /// somebody else has written is not gone on with.
    pub fn append(&self, db: &Connection, records: &[AuditRecord]) -> Result<(), AuditError> {
        let Some(last) = records.last() else {
            return Ok(());
        };
        let counted = |record: &AuditRecord| Counted {
            record: record.clone(),
            window: None,
        };
        let records: Vec<_> = records.iter().map(counted).collect();
        self.append_counted(db, &records, last.time)
    }

    /// As [`append`](Self::append), for records of which some are only counted, and records the
    /// counters whose window is over at `now`.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub fn append_counted(
        &self,
        db: &Connection,
        records: &[Counted],
        now: OffsetDateTime,
    ) -> Result<(), AuditError> {
        lock(db)?;
        let mut end = self.end(db)?;
        for counter in end.counters.overdue(now) {
            match counter.count {
                0 => end.counters.close(counter.id),
                _ => self.put_counter(db, &mut end, &counter, now)?,
            }
        }
        for Counted { record, window } in records {
            if window.is_some() && end.counters.count(record)? {
                continue;
            }
            // What was counted beside it came before it.
            for counter in end.counters.beside(record) {
                self.put_counter(db, &mut end, &counter, now)?;
            }
            self.put(db, &mut end, entry(record)?)?;
            if let Some(window) = window {
                end.counters.open(record, *window);
            }
        }
        insert(db, &end.new)?;
        end.counters.write(db)?;
        let counters = end.counters.digest(self.log);
        let (purpose, time) = (Purpose::Head, text(now)?);
        let head = Head::sign(&self.signer, purpose, self.log, end.last, counters, &time)?;
        write_head(db, &head)?;
        self.remember(head);
        Ok(())
    }

    /// Whether a record like this would only be counted.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn is_counted(&self, db: &Connection, record: &AuditRecord) -> Result<bool, AuditError> {
        counter::is_open(db, record)
    }

    /// The number of the last record that was archived, 0 when none was.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn archived(&self, db: &Connection) -> Result<u64, AuditError> {
        Ok(segment::base(db)?.0)
    }

    /// Whether there are counters whose window is over.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn has_overdue(&self, db: &Connection, now: OffsetDateTime) -> Result<bool, AuditError> {
        counter::has_overdue(db, now)
    }

    /// The counters that are open.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn counters(&self, db: &Connection) -> Result<Vec<Counter>, AuditError> {
        counter::read(db)
    }

    fn put_counter(
        &self,
        db: &Connection,
        end: &mut End,
        counter: &Counter,
        now: OffsetDateTime,
    ) -> Result<(), AuditError> {
        let entry = Entry {
            seq: 0,
            time: text(now)?,
            event: Event {
                detail: Some(counter.detail()),
                ..counter.event.clone()
            },
        };
        self.put(db, end, entry)?;
        end.counters.restart(counter.id, now);
        Ok(())
    }

    /// Puts an entry behind the end of the chain.
    fn put(&self, db: &Connection, end: &mut End, mut entry: Entry) -> Result<(), AuditError> {
        let (seq, previous) = end.last;
        entry.seq = seq + 1;
        end.last = (entry.seq, entry.hash(self.log, &previous));
        if is_checkpoint(entry.seq) {
            let (purpose, time) = (Purpose::Checkpoint, &entry.time);
            let checkpoint = Head::sign(&self.signer, purpose, self.log, end.last, None, time)?;
            write_checkpoint(db, &checkpoint)?;
        }
        end.new.push((entry, end.last.1));
        Ok(())
    }

    /// The end that is stored, when its signature holds.
    fn end(&self, db: &Connection) -> Result<End, AuditError> {
        let found = read_head_with_counters(db, self.log)?;
        let (head, counters) = found.ok_or_else(|| AuditError::tampered("its head is missing"))?;
        let end = End {
            last: (head.seq, head.hash),
            new: Vec::new(),
            counters: Counters::of(counters),
        };
        if !self.is_remembered(&head) {
            if !head.is_signed(&self.public_key, Purpose::Head, self.log) {
                return Err(AuditError::tampered("its head has no valid signature"));
            }
            self.remember(head);
        }
        Ok(end)
    }

    fn is_remembered(&self, head: &Head) -> bool {
        let signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        signed.as_ref() == Some(head)
    }

    fn remember(&self, head: Head) {
        *self.signed.lock().unwrap_or_else(PoisonError::into_inner) = Some(head);
    }

    /// Visits the records behind number `after`, in order.
    ///
    /// # Errors
    /// [`AuditError`], or what `visit` returns.
    pub fn for_each<E: From<AuditError>>(
        &self,
        db: &Connection,
        after: u64,
        mut visit: impl FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        stored(db, after, |stored| visit(stored.entry))
    }

    /// The number of the last record, as the head has it.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn last(&self, db: &Connection) -> Result<u64, AuditError> {
        Ok(read_head(db, self.log)?.map_or(0, |head| head.seq))
    }
}

/// What the sealed signing key is bound to.
fn associated(log: LogId, public_key: &PublicKey) -> Vec<u8> {
    let context: &[u8] = b"sealdisk audit signing key v1\0";
    [context, log.as_bytes(), &public_key.0].concat()
}

/// The entry of a record, whose number is set when it is put into the chain.
fn entry(record: &AuditRecord) -> Result<Entry, AuditError> {
    Ok(Entry {
        seq: 0,
        time: text(record.time)?,
        event: record.event.clone(),
    })
}
