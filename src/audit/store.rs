//! A chain in an SQLite database, beside whatever else that database holds.

use rusqlite::{Connection, OptionalExtension, Row, params};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};
use uuid::Uuid;

use super::chain::{Entry, GENESIS, Hash, Head, LogId, is_checkpoint};
use super::export::ExportedLog;
use super::signer::{PublicKey, Purpose, Signer};
use super::{AuditError, AuditRecord};
use crate::keys::SealingKey;

/// The tables of a log. Records are only ever appended; what ties them together is in
/// [`Entry::hash`] and in the signatures.
pub const TABLES: &str = "
CREATE TABLE audit_log (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    log_id     TEXT NOT NULL,
    created    TEXT NOT NULL,
    public_key BLOB NOT NULL,
    sealed_key BLOB NOT NULL
) STRICT;
CREATE TABLE audit (
    seq       INTEGER PRIMARY KEY,
    time      TEXT NOT NULL,
    caller    TEXT NOT NULL,
    origin    TEXT NOT NULL,
    operation TEXT NOT NULL,
    key       TEXT,
    version   TEXT,
    disk      TEXT,
    detail    TEXT,
    code      TEXT,
    hash      BLOB NOT NULL
) STRICT;
CREATE TABLE audit_head (
    id        INTEGER PRIMARY KEY CHECK (id = 1),
    seq       INTEGER NOT NULL,
    hash      BLOB NOT NULL,
    time      TEXT NOT NULL,
    signature BLOB NOT NULL
) STRICT;
CREATE TABLE audit_checkpoints (
    seq       INTEGER PRIMARY KEY,
    hash      BLOB NOT NULL,
    time      TEXT NOT NULL,
    signature BLOB NOT NULL
) STRICT;
";

/// A record with the hash that is stored beside it.
pub(super) struct StoredEntry {
    pub entry: Entry,
    pub hash: Vec<u8>,
}

/// The log of a database: its id and the key that signs it.
pub struct Chain {
    log: LogId,
    created: String,
    signer: Signer,
    public_key: PublicKey,
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
        db.execute(
            "INSERT INTO audit_log VALUES (1, ?, ?, ?, ?)",
            params![log.to_string(), created, public_key.0, sealed],
        )?;
        let chain = Self {
            log,
            created,
            signer,
            public_key,
        };
        let head = Head::sign(
            &chain.signer,
            Purpose::Head,
            log,
            0,
            GENESIS,
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
        let columns = |row: &Row<'_>| {
            let id: String = row.get(0)?;
            let created: String = row.get(1)?;
            let key: Vec<u8> = row.get(2)?;
            Ok((id, created, key, row.get::<_, Vec<u8>>(3)?))
        };
        let Some((id, created, public_key, sealed)) = db.query_row(sql, [], columns).optional()?
        else {
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
        let sealed: Vec<u8> = db.query_row(sql, [], |row| row.get(0))?;
        let bound = associated(self.log, &self.public_key);
        let secret = old
            .open(&bound, &sealed)
            .map_err(|_| AuditError::tampered("its signing key was exchanged"))?;
        let sealed = new.seal(&bound, &secret).map_err(AuditError::Key)?;
        db.execute("UPDATE audit_log SET sealed_key = ?", [sealed])?;
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

    /// The key that verifies heads and checkpoints.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Appends records and signs the new head, in the caller's transaction, which must hold the
    /// database's write lock from its beginning (`BEGIN IMMEDIATE`).
    ///
    /// # Errors
    /// [`AuditError::Tampered`] when the head is not one that this log signed: a chain that
    /// somebody else has written is not gone on with.
    pub fn append(&self, db: &Connection, records: &[AuditRecord]) -> Result<(), AuditError> {
        let Some(last) = records.last() else {
            return Ok(());
        };
        let head = self.head(db)?;
        let (mut seq, mut hash) = (head.seq, head.hash);
        for record in records {
            seq += 1;
            let entry = entry(seq, record)?;
            hash = entry.hash(self.log, &hash);
            insert(db, &entry, &hash)?;
            if is_checkpoint(seq) {
                let purpose = Purpose::Checkpoint;
                let at = &entry.time;
                let checkpoint = Head::sign(&self.signer, purpose, self.log, seq, hash, at)?;
                write_checkpoint(db, &checkpoint)?;
            }
        }
        let time = text(last.time)?;
        let head = Head::sign(&self.signer, Purpose::Head, self.log, seq, hash, &time)?;
        write_head(db, &head)
    }

    /// The signed head, when it is one.
    fn head(&self, db: &Connection) -> Result<Head, AuditError> {
        let head = read_head(db)?.ok_or_else(|| AuditError::tampered("its head is missing"))?;
        match head.is_signed(&self.public_key, Purpose::Head, self.log) {
            true => Ok(head),
            false => Err(AuditError::tampered("its head has no valid signature")),
        }
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
        Ok(read_head(db)?.map_or(0, |head| head.seq))
    }
}

/// What the log in the tables of `db` is, without the key that signs it.
pub(super) fn exported(db: &Connection, name: &str) -> Result<ExportedLog, AuditError> {
    let sql = "SELECT log_id, created, public_key FROM audit_log";
    let columns = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?));
    let found = db.query_row(sql, [], columns).optional()?;
    let (id, created, public_key) =
        found.ok_or_else(|| AuditError::tampered("its first row is missing"))?;
    Ok(ExportedLog {
        name: name.into(),
        log: Uuid::parse_str(&id).map_err(|_| AuditError::tampered("its id is none"))?,
        created,
        public_key: PublicKey(public_key),
    })
}

/// What the sealed signing key is bound to.
fn associated(log: LogId, public_key: &PublicKey) -> Vec<u8> {
    let context: &[u8] = b"sealdisk audit signing key v1\0";
    [context, log.as_bytes(), &public_key.0].concat()
}

fn entry(seq: u64, record: &AuditRecord) -> Result<Entry, AuditError> {
    Ok(Entry {
        seq,
        time: text(record.time)?,
        caller: record.caller.to_string(),
        origin: record.origin.clone(),
        operation: record.operation.clone(),
        key: record.key.clone(),
        version: record.version.clone(),
        disk: record.disk.clone(),
        detail: record.detail.clone(),
        code: record.refusal.clone(),
    })
}

fn text(time: OffsetDateTime) -> Result<String, AuditError> {
    Ok(time.to_offset(UtcOffset::UTC).format(&Rfc3339)?)
}

const COLUMNS: &str =
    "seq, time, caller, origin, operation, key, version, disk, detail, code, hash";

fn insert(db: &Connection, entry: &Entry, hash: &Hash) -> Result<(), AuditError> {
    let sql = format!("INSERT INTO audit ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?)");
    let inserted = db.prepare_cached(&sql)?.execute(params![
        number(entry.seq)?,
        entry.time,
        entry.caller,
        entry.origin,
        entry.operation,
        entry.key,
        entry.version,
        entry.disk,
        entry.detail,
        entry.code,
        hash.as_slice(),
    ]);
    match inserted {
        Err(e) if is_taken(&e) => Err(AuditError::tampered(format!(
            "there is a record {} behind its end",
            entry.seq
        ))),
        other => Ok(other.map(drop)?),
    }
}

fn is_taken(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|e| e.extended_code);
    code == Some(rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY)
}

/// Visits the stored records behind number `after`, in order.
pub(super) fn stored<E: From<AuditError>>(
    db: &Connection,
    after: u64,
    mut visit: impl FnMut(StoredEntry) -> Result<(), E>,
) -> Result<(), E> {
    let sqlite = |e: rusqlite::Error| E::from(AuditError::Sqlite(e));
    let sql = format!("SELECT {COLUMNS} FROM audit WHERE seq > ? ORDER BY seq");
    let mut statement = db.prepare_cached(&sql).map_err(sqlite)?;
    let mut rows = statement.query([number(after)?]).map_err(sqlite)?;
    while let Some(row) = rows.next().map_err(sqlite)? {
        visit(read_entry(row).map_err(sqlite)?)?;
    }
    Ok(())
}

fn read_entry(row: &Row<'_>) -> rusqlite::Result<StoredEntry> {
    Ok(StoredEntry {
        entry: Entry {
            seq: seq(row)?,
            time: row.get(1)?,
            caller: row.get(2)?,
            origin: row.get(3)?,
            operation: row.get(4)?,
            key: row.get(5)?,
            version: row.get(6)?,
            disk: row.get(7)?,
            detail: row.get(8)?,
            code: row.get(9)?,
        },
        hash: row.get(10)?,
    })
}

pub(super) fn read_head(db: &Connection) -> Result<Option<Head>, AuditError> {
    let sql = "SELECT seq, hash, time, signature FROM audit_head";
    let head = db.prepare_cached(sql)?.query_row([], signed).optional()?;
    head.transpose()
}

pub(super) fn read_checkpoints(db: &Connection) -> Result<Vec<Head>, AuditError> {
    let sql = "SELECT seq, hash, time, signature FROM audit_checkpoints ORDER BY seq";
    let mut statement = db.prepare(sql)?;
    let rows = statement.query_map([], signed)?;
    rows.map(|row| row?).collect()
}

/// A head or checkpoint; one whose hash has a wrong length cannot have been written here.
fn signed(row: &Row<'_>) -> rusqlite::Result<Result<Head, AuditError>> {
    let hash: Vec<u8> = row.get(1)?;
    let Ok(hash) = hash.try_into() else {
        return Ok(Err(AuditError::tampered("a signed hash is none")));
    };
    Ok(Ok(Head {
        seq: seq(row)?,
        hash,
        time: row.get(2)?,
        signature: row.get(3)?,
    }))
}

fn write_head(db: &Connection, head: &Head) -> Result<(), AuditError> {
    let sql = "INSERT OR REPLACE INTO audit_head (id, seq, hash, time, signature) \
               VALUES (1, ?, ?, ?, ?)";
    db.prepare_cached(sql)?.execute(params![
        number(head.seq)?,
        head.hash.as_slice(),
        head.time,
        head.signature
    ])?;
    Ok(())
}

fn write_checkpoint(db: &Connection, checkpoint: &Head) -> Result<(), AuditError> {
    db.prepare_cached("INSERT INTO audit_checkpoints VALUES (?, ?, ?, ?)")?
        .execute(params![
            number(checkpoint.seq)?,
            checkpoint.hash.as_slice(),
            checkpoint.time,
            checkpoint.signature
        ])?;
    Ok(())
}

/// A negative number, which nothing here writes, becomes one that no record can have.
fn seq(row: &Row<'_>) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(0)?.cast_unsigned())
}

/// SQLite's integers are signed.
fn number(seq: u64) -> Result<i64, AuditError> {
    i64::try_from(seq).map_err(|_| AuditError::tampered("a record's number is none"))
}
