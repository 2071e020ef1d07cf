//! What a check has found.

use serde::Serialize;
use uuid::Uuid;

/// How grave a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ProblemKind {
    /// Content or keys are lost or in danger.
    Damage,
    /// Something takes space for nothing.
    Leak,
    /// Nothing is wrong: what an interrupted command left, and the next attach puts away by itself.
    Note,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// How grave it is.
    pub kind: ProblemKind,
    /// `header`, `session`, `sync`, `data`, `map` or `directory`.
    pub part: &'static str,
    /// One line: what, and what to do.
    pub message: String,
    /// It was, and is no more.
    pub repaired: bool,
}

/// A part of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ByteRange {
    /// Its first byte.
    pub offset: u64,
    /// How many bytes it has.
    pub length: u64,
}

/// What a check found.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// The disk.
    pub name: String,
    /// Its id.
    pub unique_id: Uuid,
    /// Its size by its header, when that can be read.
    pub disk_size_bytes: Option<u64>,
    /// Bytes of the blocks that hold data, in all layers, when their maps can be read.
    pub data_bytes: Option<u64>,
    /// Bytes of the blocks that were written for the first time since the last flush, when there is a
    /// runtime map that tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unflushed_bytes: Option<u64>,
    /// Where these are, in rising order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unflushed_ranges: Vec<ByteRange>,
    /// Which of these are lost: the data file has holes there. A repair has them read as before they were
    /// written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost_ranges: Vec<ByteRange>,
    /// Which of these cannot be read at the moment. A repair has them read as before they were written only
    /// when it is told to go on without them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreadable_ranges: Vec<ByteRange>,
    /// Whether the header was proven to be written by somebody who had the disk's key.
    pub header_authenticated: bool,
    /// Why it could not be looked at, if that is the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_authenticated_because: Option<String>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

impl CheckReport {
    /// Problems of a kind that were not repaired.
    pub fn remaining(&self, kind: ProblemKind) -> usize {
        let left = |problem: &&Problem| problem.kind == kind && !problem.repaired;
        self.problems.iter().filter(left).count()
    }

    pub(super) fn add(
        &mut self,
        kind: ProblemKind,
        part: &'static str,
        message: String,
        repaired: bool,
    ) {
        self.problems.push(Problem {
            kind,
            part,
            message: message.replace('\n', " "),
            repaired,
        });
    }

    pub(super) fn damage(&mut self, part: &'static str, message: impl ToString) {
        self.add(ProblemKind::Damage, part, message.to_string(), false);
    }

    pub(super) fn repaired_damage(&mut self, part: &'static str, message: String) {
        self.add(ProblemKind::Damage, part, message, true);
    }

    pub(super) fn note(&mut self, part: &'static str, message: String, repaired: bool) {
        self.add(ProblemKind::Note, part, message, repaired);
    }

    pub(super) fn leak(&mut self, part: &'static str, message: String, repaired: bool) {
        self.add(ProblemKind::Leak, part, message, repaired);
    }
}

/// The first of some ranges, for a message.
pub(super) fn in_words(ranges: &[ByteRange]) -> String {
    const NAMED: usize = 8;
    if ranges.is_empty() {
        return String::new();
    }
    let name = |range: &ByteRange| format!("{}+{}", range.offset, range.length);
    let named: Vec<_> = ranges.iter().take(NAMED).map(name).collect();
    let more = match ranges.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more ranges, see -o json"),
    };
    format!(" (offset+length: {}{more})", named.join(", "))
}
