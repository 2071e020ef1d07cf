//! Verifying audit logs, again and again: somebody may change one at any time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;

use super::shared::{Part, Shared};
use super::views::item;
use installation::{Installation, InstallationError, LogDatabase, Place};
use vault::audit::Pin;

/// The least time between two verifications, in periods of looking.
const PERIODS: u32 = 4;
/// A verification takes this share of the time at most.
const SHARE: u32 = 20;

/// What was found of a log.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LogView {
    /// The number of the last record up to which the chain fits.
    verified: u64,
    /// How many of these were archived, and were not looked at.
    archived: u64,
    intact: bool,
    /// What does not fit, and the number of the record where it shows first.
    finding: Option<String>,
    first_bad: Option<u64>,
    /// When the end of the log was signed.
    signed: Option<String>,
    /// How many checkpoints that were kept elsewhere it was compared with.
    checkpoints: usize,
    /// Why it could not be verified.
    problem: Option<String>,
}

/// Verifies all logs again and again.
pub(super) fn verify_again_and_again(
    shared: &Arc<Shared>,
    place: &Place,
    pins: &[Pin],
    period: Duration,
) {
    // When each was verified last: it changes at each look, and the rest seldom does.
    let mut verified = BTreeMap::new();
    loop {
        let started = Instant::now();
        let returns = shared.returns();
        match verify_all(place, pins) {
            Ok(logs) => {
                let now = OffsetDateTime::now_utc().unix_timestamp();
                verified.clear();
                verified.extend(logs.iter().map(|(name, _)| (name.clone(), now)));
                let times = verified.iter();
                let times = times.map(|(name, at)| (name.clone(), Value::from(*at)));
                shared.put(Part::Logs, returns, |content| {
                    content.state.put("logs", logs);
                    content.state.put("verified", times);
                });
            }
            Err(error) => log::debug!("the audit logs are not verified: {error}"),
        }
        let least = period * PERIODS;
        shared.wait(least.max(started.elapsed() * SHARE), returns);
    }
}

fn verify_all(place: &Place, pins: &[Pin]) -> Result<Vec<(String, Value)>, InstallationError> {
    let Some(installation) = Installation::open_if_there(place)? else {
        return Ok(Vec::new());
    };
    let logs = installation.log_databases()?.into_iter();
    Ok(logs.map(|log| item(&log.name, &view(&log, pins))).collect())
}

fn view(log: &LogDatabase, pins: &[Pin]) -> LogView {
    match log.verify(pins) {
        Ok(report) => LogView {
            verified: report.records,
            archived: report.archived,
            intact: report.finding.is_none(),
            first_bad: report.finding.as_ref().map(|finding| finding.seq),
            finding: report.finding.map(|finding| finding.what),
            signed: report.head.map(|head| head.time),
            checkpoints: report.pins,
            problem: None,
        },
        Err(error) => LogView {
            verified: 0,
            archived: 0,
            intact: false,
            finding: None,
            first_bad: None,
            signed: None,
            checkpoints: 0,
            problem: Some(error.to_string()),
        },
    }
}
