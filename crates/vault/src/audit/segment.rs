//! Segments: records that were taken out of a log, and how they are signed.

use database::{Connection, Row};
use serde::{Deserialize, Serialize};

use super::AuditError;
use super::encoding::{Hash, encoded, encoded_hash, ordinal};
use super::entry::{GENESIS, LogId};
use super::signer::{PublicKey, Purpose, Signer};

/// The table of segments.
pub(super) const TABLE: &str = "
CREATE TABLE audit_segments (
    first     INTEGER PRIMARY KEY,
    last      INTEGER NOT NULL,
    previous  BLOB NOT NULL,
    hash      BLOB NOT NULL,
    time      TEXT NOT NULL,
    signature BLOB NOT NULL
) STRICT;
";

/// What the third version of a log has besides: where a segment was written, and the SHA-256 of that file
/// in hexadecimal. Neither is signed: they help to find a file, whose signature then counts.
pub(super) const COLUMNS_3: &str = "
ALTER TABLE audit_segments ADD COLUMN file TEXT;
ALTER TABLE audit_segments ADD COLUMN sha256 TEXT;
";

/// Records that were, or are to be, taken out of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The first record's number.
    #[serde(deserialize_with = "ordinal")]
    pub first: u64,
    /// The last record's number.
    #[serde(deserialize_with = "ordinal")]
    pub last: u64,
    /// The hash of the record before the first.
    #[serde(with = "encoded_hash")]
    pub previous: Hash,
    /// The hash of the last record.
    #[serde(with = "encoded_hash")]
    pub hash: Hash,
    /// When it was archived, RFC 3339.
    pub time: String,
    /// The signature over all that.
    #[serde(with = "encoded")]
    pub signature: Vec<u8>,
}

impl Segment {
    pub(super) fn sign(mut self, signer: &Signer, log: LogId) -> Result<Self, AuditError> {
        self.signature = signer.sign(Purpose::Segment, &self.message(log))?;
        Ok(self)
    }

    pub(super) fn is_signed(&self, key: &PublicKey, log: LogId) -> bool {
        key.verifies(Purpose::Segment, &self.message(log), &self.signature)
    }

    fn message(&self, log: LogId) -> Vec<u8> {
        let mut message = log.as_bytes().to_vec();
        message.extend(self.first.to_le_bytes());
        message.extend(self.previous);
        message.extend(self.last.to_le_bytes());
        message.extend(self.hash);
        message.extend(self.time.as_bytes());
        message
    }
}

/// The number and hash of the last record that was archived.
pub(super) fn base(db: &Connection) -> Result<(u64, Hash), AuditError> {
    let last = read(db)?.pop();
    Ok(last.map_or((0, GENESIS), |segment| (segment.last, segment.hash)))
}

/// The segments of a log, the oldest first.
pub(super) fn read(db: &Connection) -> Result<Vec<Segment>, AuditError> {
    let sql =
        "SELECT first, last, previous, hash, time, signature FROM audit_segments ORDER BY first";
    db.select(sql, &[], columns)
}

/// Where the file of a segment was written, and the SHA-256 of that, as far as they are known.
type Written = (Option<String>, Option<String>);

/// As [`read`], each with where it was written.
pub(super) fn read_with_files(db: &Connection) -> Result<Vec<(Segment, Written)>, AuditError> {
    let sql = "SELECT first, last, previous, hash, time, signature, file, sha256 \
               FROM audit_segments ORDER BY first";
    db.select(sql, &[], |row| {
        Ok::<_, AuditError>((columns(row)?, (row.get(6)?, row.get(7)?)))
    })
}

fn columns(row: &Row) -> Result<Segment, AuditError> {
    let hash = |column: usize| -> Result<Hash, AuditError> {
        let hash = row.get::<Vec<u8>>(column)?.try_into();
        hash.map_err(|_| AuditError::tampered("the hash of a segment is none"))
    };
    let number = |column: usize| -> Result<u64, AuditError> {
        let number = row.get::<i64>(column)?.try_into();
        number.map_err(|_| AuditError::tampered("the number of a segment is none"))
    };
    Ok(Segment {
        first: number(0)?,
        last: number(1)?,
        previous: hash(2)?,
        hash: hash(3)?,
        time: row.get(4)?,
        signature: row.get(5)?,
    })
}
