//! What a guard tells the one that goes on in the next program.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Access, Guard, Key, Moment};
use crate::status::{GuardOptions, Reason};

/// What a guard knows, for the program that goes on with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct GuardState {
    access: AccessState,
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
    /// The data plane has the DEK; else it was destroyed.
    held: bool,
    key_url: String,
    #[serde(with = "time::serde::rfc3339")]
    last_check: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    last_granted: OffsetDateTime,
    last_failure: Option<Reason>,
    /// A check that nobody has answered; nothing before version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asked: Option<AskedState>,
}

/// When a check was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AskedState {
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    /// By the clock that never jumps.
    for_ms: u64,
}

impl GuardState {
    /// As programs read it that know version 1 only.
    pub(crate) fn of_version_1(self) -> Self {
        Self {
            asked: None,
            ..self
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum AccessState {
    Granted,
    Unreachable {
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
        /// By the clock that never jumps.
        for_ms: u64,
        reason: Reason,
    },
    Stopped {
        reason: Reason,
    },
}

impl Guard {
    /// One that goes on where another was. The key is checked at once: what the other had asked is lost. But it counts
    /// as asked since then, else a vault that does not answer would never be unreachable for a program that is replaced
    /// again and again.
    pub(crate) fn resumed(options: GuardOptions, state: GuardState, now: Moment) -> Self {
        let access = match state.access {
            AccessState::Granted => Access::Granted,
            AccessState::Unreachable {
                since,
                for_ms,
                reason,
            } => {
                let since = before(now, for_ms, since);
                Access::Unreachable { since, reason }
            }
            AccessState::Stopped { reason } => Access::Stopped { reason },
        };
        Self {
            access,
            since: state.since,
            key: match state.held {
                true => Key::Held,
                false => Key::Destroyed,
            },
            key_url: state.key_url,
            unanswered: state.asked.map(|asked| before(now, asked.for_ms, asked.at)),
            next_check: now.instant,
            last_check: state.last_check,
            last_granted: state.last_granted,
            last_failure: state.last_failure,
            ..Self::new(options, String::new(), now)
        }
    }

    /// What it knows; `None` while a DEK is on its way or being destroyed.
    pub(crate) fn state(&self, now: Moment) -> Option<GuardState> {
        let since = |then: Moment| now.instant.saturating_duration_since(then.instant);
        let held = match self.key {
            Key::Held => true,
            Key::Destroyed => false,
            Key::Absent | Key::BeingDestroyed { .. } | Key::BeingRestored { .. } => return None,
        };
        let access = match &self.access {
            Access::Granted => AccessState::Granted,
            Access::Unreachable {
                since: then,
                reason,
            } => AccessState::Unreachable {
                since: then.time,
                for_ms: since(*then).as_millis() as u64,
                reason: reason.clone(),
            },
            Access::Stopped { reason } => AccessState::Stopped {
                reason: reason.clone(),
            },
        };
        let asked = self.asked.as_ref().map(|asked| asked.at);
        let asked = asked.or(self.unanswered).map(|at| AskedState {
            at: at.time,
            for_ms: since(at).as_millis() as u64,
        });
        Some(GuardState {
            access,
            asked,
            since: self.since,
            held,
            key_url: self.key_url.clone(),
            last_check: self.last_check,
            last_granted: self.last_granted,
            last_failure: self.last_failure.clone(),
        })
    }
}

/// The moment so long before `now`, which was shown as `time`.
fn before(now: Moment, for_ms: u64, time: OffsetDateTime) -> Moment {
    let instant = now.instant.checked_sub(Duration::from_millis(for_ms));
    Moment {
        instant: instant.unwrap_or(now.instant),
        time,
    }
}
