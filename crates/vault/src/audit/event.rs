//! Who asked for what with which key: what records, counters and the lines of an export have in common.

use aws_lc_rs::digest::Context;
use database::{Row, Value};
use serde::{Deserialize, Serialize};

/// The columns that have an event, in every table that does.
pub(super) const COLUMNS: &str = "caller, origin, operation, key, version, disk, detail, code";
/// As many parameters.
pub(super) const PARAMETERS: &str = "?, ?, ?, ?, ?, ?, ?, ?";
/// How many they are.
pub(super) const COUNT: usize = 8;

/// What was asked for, as text, exactly as it is stored and hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Who asked.
    pub caller: String,
    /// From where.
    pub origin: String,
    /// What was asked for, with the names of Azure's log: `KeyWrap`, `KeyUnwrap`, `KeyGet`, …
    pub operation: String,
    /// With which key: its name in a vault's log, its URL in the installation's.
    pub key: Option<String>,
    /// In which version.
    pub version: Option<String>,
    /// For which disk.
    pub disk: Option<String>,
    /// What exactly was to be changed, where something was.
    pub detail: Option<String>,
    /// The code of the refusal; `None` when it was allowed.
    pub code: Option<String>,
}

impl Event {
    /// From the columns [`COLUMNS`] of a row, the first of which is `at`.
    pub(super) fn read(row: &Row, at: usize) -> Result<Self, database::Error> {
        Ok(Self {
            caller: row.get(at)?,
            origin: row.get(at + 1)?,
            operation: row.get(at + 2)?,
            key: row.get(at + 3)?,
            version: row.get(at + 4)?,
            disk: row.get(at + 5)?,
            detail: row.get(at + 6)?,
            code: row.get(at + 7)?,
        })
    }

    /// For the columns [`COLUMNS`].
    pub(super) fn values(&self) -> [Value<'_>; COUNT] {
        self.texts().map(value)
    }

    /// Everything in it, in the order in which it is hashed and stored.
    pub(super) fn texts(&self) -> [Option<&str>; COUNT] {
        [
            Some(self.caller.as_str()),
            Some(&self.origin),
            Some(&self.operation),
            self.key.as_deref(),
            self.version.as_deref(),
            self.disk.as_deref(),
            self.detail.as_deref(),
            self.code.as_deref(),
        ]
    }
}

/// A text as it is stored.
pub(super) fn value(text: Option<&str>) -> Value<'_> {
    text.map_or(Value::Null, |text| Value::Text(text.into()))
}

/// Hashes texts. Each follows its length, and a text that is not there is told from an empty one, so
/// that no two sequences of texts have the same encoding.
pub(super) fn hash_texts<'a>(hash: &mut Context, texts: impl IntoIterator<Item = Option<&'a str>>) {
    for text in texts {
        match text {
            None => hash.update(&[0]),
            Some(text) => {
                hash.update(&[1]);
                hash.update(&(text.len() as u64).to_le_bytes());
                hash.update(text.as_bytes());
            }
        }
    }
}
