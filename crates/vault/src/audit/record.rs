//! What happened, as it is appended to a log.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::event::Event;

/// For how long refusals of one kind are counted.
pub const REFUSALS: Duration = Duration::from_secs(1);

/// A record, and for how long others of its kind are counted after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The record.
    pub record: AuditRecord,
    /// `None` for one that stands for itself.
    pub window: Option<Duration>,
}

/// What happened, and when. [`Entry`](super::Entry) is what a log stores of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// When, in UTC.
    pub time: OffsetDateTime,
    /// What.
    pub event: Event,
}

impl AuditRecord {
    /// A record of what was done now, with nothing more said about it. Operations have the names of
    /// Azure's log: `KeyWrap`, `KeyUnwrap`, `KeyGet`, …
    pub fn new(caller: Uuid, origin: impl ToString, operation: impl Into<String>) -> Self {
        Self {
            time: OffsetDateTime::now_utc(),
            event: Event {
                caller: caller.to_string(),
                origin: origin.to_string(),
                operation: operation.into(),
                key: None,
                version: None,
                disk: None,
                detail: None,
                code: None,
            },
        }
    }

    /// The record, of that time.
    #[must_use]
    pub fn at(mut self, time: OffsetDateTime) -> Self {
        self.time = time;
        self
    }

    /// The record, which says what exactly was to be changed.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.event.detail = Some(detail.into());
        self
    }

    /// The record of a refusal with that code.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.event.code = Some(code.into());
        self
    }
}
