//! What is hashed and what is signed. Both are fixed: a change makes every log that exists invalid.

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::AuditError;
use super::encoding::{Hash, encoded, encoded_hash, ordinal};
use super::event::{Event, hash_texts};
use super::signer::{PublicKey, Purpose, Signer};

/// After so many records a signed checkpoint is kept.
pub const CHECKPOINT_INTERVAL: u64 = 1000;

/// The id of a log, which is part of every hash: a record of one log is none of another.
pub type LogId = Uuid;

/// What the first record takes for the hash of the record before it.
pub(super) const GENESIS: Hash = [0; 32];

/// A record as it is stored: text, exactly as it was hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number, from 1, without gaps.
    #[serde(deserialize_with = "ordinal")]
    pub seq: u64,
    /// When, RFC 3339.
    pub time: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl Entry {
    /// The record's hash, behind the record that has the hash `previous`.
    pub fn hash(&self, log: LogId, previous: &Hash) -> Hash {
        let mut hash = Context::new(&SHA256);
        hash.update(b"sealdisk audit record v1\0");
        hash.update(log.as_bytes());
        hash.update(&self.seq.to_le_bytes());
        hash.update(previous);
        let time = std::iter::once(Some(self.time.as_str()));
        hash_texts(&mut hash, time.chain(self.event.texts()));
        let mut finished = Hash::default();
        finished.copy_from_slice(hash.finish().as_ref());
        finished
    }
}

/// A record with the hash that is stored beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredEntry {
    /// The record.
    #[serde(flatten)]
    pub entry: Entry,
    /// The hash, which is to be compared with the record's.
    #[serde(with = "encoded")]
    pub hash: Vec<u8>,
}

/// How far a chain reaches: the number and hash of a record, and when that was signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The record's number, 0 for an empty log.
    #[serde(deserialize_with = "ordinal")]
    pub seq: u64,
    /// Its hash.
    #[serde(with = "encoded_hash")]
    pub hash: Hash,
    /// What it covers of the counters that are open: SHA-256 over them; `None` when there are none,
    /// and in a checkpoint.
    #[serde(
        default,
        with = "encoded_hash::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub counters: Option<Hash>,
    /// When it was signed, RFC 3339.
    pub time: String,
    /// The signature over all that.
    #[serde(with = "encoded")]
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
