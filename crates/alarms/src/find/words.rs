//! How alarms say when and what: ends, moments, spans, lists.

use time::{Duration, OffsetDateTime};

use crate::alarm::Severity;
use crate::settings::seconds;
use vault::moment;

/// Names in a message at most.
const NAMED: usize = 3;

/// How far something is from its end.
pub(super) struct NearEnd {
    pub(super) severity: Severity,
    pub(super) since: OffsetDateTime,
    /// As the end of a sentence: `ends at …, in 3 days`.
    pub(super) when: String,
    pub(super) ended: bool,
}

/// Whether something that ends at `end` is near that. At `end` itself it has ended.
pub(super) fn near_end(
    end: OffsetDateTime,
    now: OffsetDateTime,
    (warning, critical): (u64, u64),
) -> Option<NearEnd> {
    if now >= end {
        return Some(NearEnd {
            severity: Severity::Critical,
            since: end,
            when: format!("ended at {}, {} ago", moment(end), span(now - end)),
            ended: true,
        });
    }
    let left = end - now;
    let severity = match (left <= seconds(critical), left <= seconds(warning)) {
        (true, _) => Severity::Critical,
        (false, true) => Severity::Warning,
        (false, false) => return None,
    };
    Some(NearEnd {
        severity,
        since: end.saturating_sub(seconds(warning)),
        when: format!("ends at {}, in {}", moment(end), span(left)),
        ended: false,
    })
}

/// A time as people say it.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.whole_seconds().max(0);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Some names, and how many more there are.
pub(super) fn listed(names: &[String]) -> String {
    let first = names
        .iter()
        .take(NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}
