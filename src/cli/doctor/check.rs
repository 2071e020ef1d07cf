//! What a check has found.

use serde::Serialize;

use crate::cli::Tabular;
use crate::cli::output::NOTHING;

/// How grave it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// As it should be.
    Ok,
    /// Disks are served, but something is worse than it could be.
    Warn,
    /// Something does not work.
    Fail,
}

/// One check.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Check {
    /// What was looked at.
    pub(super) check: &'static str,
    pub(super) status: Status,
    found: String,
    /// What to do about it.
    advice: Option<String>,
}

impl Check {
    pub(super) fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            status: Status::Ok,
            found: found.into(),
            advice: None,
        }
    }

    pub(super) fn warn(
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Warn,
            advice: Some(advice.into()),
            ..Self::ok(check, found)
        }
    }

    pub(super) fn fail(
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Fail,
            ..Self::warn(check, found, advice)
        }
    }
}

impl Tabular for Check {
    const COLUMNS: &'static [&'static str] = &["check", "status", "found", "advice"];

    fn cells(&self) -> Vec<String> {
        let status = match self.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        vec![
            self.check.into(),
            status.into(),
            self.found.clone(),
            self.advice.clone().unwrap_or_else(|| NOTHING.into()),
        ]
    }
}
