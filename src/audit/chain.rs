//! What is hashed and what is signed. Both are fixed: a change makes every log that exists invalid.

use aws_lc_rs::digest::{Context, SHA256};
use uuid::Uuid;

use super::signer::{PublicKey, Purpose, Signer};
use super::{AuditError, CHECKPOINT_INTERVAL};

/// The hash of a record.
pub type Hash = [u8; 32];

/// The id of a log, which is part of every hash: a record of one log is none of another.
pub type LogId = Uuid;

/// What the first record takes for the hash of the record before it.
pub(super) const GENESIS: Hash = [0; 32];

/// A record as it is stored: text, exactly as it was hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number, from 1, without gaps.
    pub seq: u64,
    /// When, RFC 3339.
    pub time: String,
    /// Who asked.
    pub caller: String,
    /// From where.
    pub origin: String,
    /// What was asked for.
    pub operation: String,
    /// With which key.
    pub key: Option<String>,
    /// In which version.
    pub version: Option<String>,
    /// For which disk.
    pub disk: Option<String>,
    /// What exactly.
    pub detail: Option<String>,
    /// The code of the refusal; `None` when it was allowed.
    pub code: Option<String>,
}

impl Entry {
    /// The record's hash, behind the record that has the hash `previous`.
    ///
    /// Each text follows its length, and a text that is not there is told from an empty one, so that
    /// no two records have the same encoding.
    pub fn hash(&self, log: LogId, previous: &Hash) -> Hash {
        let mut hash = Context::new(&SHA256);
        hash.update(b"sealdisk audit record v1\0");
        hash.update(log.as_bytes());
        hash.update(&self.seq.to_le_bytes());
        hash.update(previous);
        let always = [&self.time, &self.caller, &self.origin, &self.operation].map(Some);
        let sometimes = [
            &self.key,
            &self.version,
            &self.disk,
            &self.detail,
            &self.code,
        ];
        for text in always.into_iter().chain(sometimes.map(Option::as_ref)) {
            match text {
                None => hash.update(&[0]),
                Some(text) => {
                    hash.update(&[1]);
                    hash.update(&(text.len() as u64).to_le_bytes());
                    hash.update(text.as_bytes());
                }
            }
        }
        let mut finished = Hash::default();
        finished.copy_from_slice(hash.finish().as_ref());
        finished
    }
}

/// How far a chain reaches: the number and hash of a record, and when that was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The record's number, 0 for an empty log.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
    /// What it covers of the counters that are open: SHA-256 over them; `None` when there are none,
    /// and in a checkpoint.
    pub counters: Option<Hash>,
    /// When it was signed, RFC 3339.
    pub time: String,
    /// The signature over all that.
    pub signature: Vec<u8>,
}

impl Head {
    pub(super) fn sign(
        signer: &Signer,
        purpose: Purpose,
        log: LogId,
        (seq, hash): (u64, Hash),
        counters: Option<Hash>,
        time: &str,
    ) -> Result<Self, AuditError> {
        let mut head = Self {
            seq,
            hash,
            counters,
            time: time.into(),
            signature: Vec::new(),
        };
        head.signature = signer.sign(head.purpose(purpose), &head.message(log))?;
        Ok(head)
    }

    pub(super) fn is_signed(&self, key: &PublicKey, purpose: Purpose, log: LogId) -> bool {
        key.verifies(self.purpose(purpose), &self.message(log), &self.signature)
    }

    /// A head that covers counters is signed as another kind than one that covers none.
    fn purpose(&self, purpose: Purpose) -> Purpose {
        match (purpose, self.counters) {
            (Purpose::Head, Some(_)) => Purpose::CountingHead,
            (purpose, _) => purpose,
        }
    }

    fn message(&self, log: LogId) -> Vec<u8> {
        let mut message = log.as_bytes().to_vec();
        message.extend(self.seq.to_le_bytes());
        message.extend(self.hash);
        message.extend(self.counters.iter().flatten());
        message.extend(self.time.as_bytes());
        message
    }
}

/// Whether a checkpoint is kept after the record with that number.
pub(super) fn is_checkpoint(seq: u64) -> bool {
    seq.is_multiple_of(CHECKPOINT_INTERVAL)
}
