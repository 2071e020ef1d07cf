//! What is shown of a disk.

use std::path::PathBuf;

use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::rates::Rates;
use attach::{
    AttachedLayer, CheckCounts, DekState, DiskHold, JobStatus, KeyState, KeyStatus, MetricsAnswer,
    Offered, Reason, ToldEvent,
};
use protocol::Limits;

/// An attached disk, now. What its attach does not tell, since it is of an older version or does not answer, is not
/// there.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskRow {
    /// Its id.
    pub id: Uuid,
    /// Its name, which no other row has.
    pub name: String,
    /// What is to be known of it first.
    pub standing: Standing,
    /// Why it does not answer, if it does not, as the end of a sentence.
    pub silent: Option<String>,
    /// Its size in bytes, as its guest sees it.
    pub size_bytes: Option<u64>,
    /// Attaches that wait for the disk, or have let go of it.
    pub waiting_attaches: usize,
    /// What it did between the last two answers; nothing before there are two, or where it counts anew.
    pub rates: Option<Rates>,
    /// Requests that were taken and not answered: the depth of its queues.
    pub in_flight: Option<u64>,
    /// Of these, those that wait for space on the host's storage.
    pub wait_for_space: Option<u64>,
    /// Requests that failed or were refused since it was attached.
    pub errors: Option<u64>,
    /// Its key.
    pub key: Option<KeyRow>,
    /// What it may do at most.
    #[serde(serialize_with = "shown")]
    pub limits: Option<Limits>,
    /// What its data plane has of the host, and how often that died.
    pub serving: Option<Offered>,
    /// What is being done to its layers.
    pub job: Option<JobStatus>,
    /// Its layers, bottom to top.
    pub layers: Vec<AttachedLayer>,
    /// How many events there were: whoever shows them asks for them ([`crate::ask_events`]) when there are more.
    pub events: u64,
    /// The last one.
    pub last_event: Option<ToldEvent>,
    /// Where its attach is asked.
    #[serde(skip)]
    pub socket: PathBuf,
}

/// Limits as they are shown. Those that processes of different versions tell each other have the names that they always
/// had.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownLimits {
    iops: Option<u64>,
    iops_burst: Option<u64>,
    bandwidth: Option<u64>,
    bandwidth_burst: Option<u64>,
}

fn shown<S: Serializer>(limits: &Option<Limits>, serializer: S) -> Result<S::Ok, S::Error> {
    let shown = limits.map(|limits| ShownLimits {
        iops: limits.iops,
        iops_burst: limits.iops_burst,
        bandwidth: limits.bandwidth,
        bandwidth_burst: limits.bandwidth_burst,
    });
    shown.serialize(serializer)
}

/// The key of an attached disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRow {
    /// Whether it is granted.
    pub state: KeyState,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// When the grace period of an unreachable key ends.
    #[serde(with = "time::serde::rfc3339::option")]
    pub until: Option<OffsetDateTime>,
    /// Why it is not granted.
    pub reason: Option<Reason>,
    /// Where the DEK is.
    pub dek: DekState,
    /// The key version that wraps the DEK.
    pub url: String,
    /// When the vault last granted it.
    #[serde(with = "time::serde::rfc3339")]
    pub last_granted: OffsetDateTime,
    /// The longest time between two checks.
    pub check_interval_seconds: u64,
    /// The checks so far, by their result; nothing of an attach of an older version.
    pub checks: Option<CheckCounts>,
}

/// What is to be known of a disk first. The order is that of how bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Standing {
    /// It does not answer, or not in time.
    Silent,
    /// Its key is refused, or was unreachable for too long: it is stopped.
    KeyRevoked,
    /// Requests wait for space on the host's storage.
    SpaceFull,
    /// Requests are under way and none ends, or its data plane gives no sign of life.
    Stalled,
    /// Its key cannot be checked; it is served for the grace period.
    KeyUnreachable,
    /// An error holds its job up.
    JobHeldUp,
    /// This attach waits for it.
    Awaited,
    /// This attach has let go of it, for another one.
    LetGo,
    /// It was asked, and has not answered yet.
    Asked,
    /// Nothing is wrong.
    Served,
}

impl Standing {
    /// In one or two words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::KeyRevoked => "key revoked",
            Self::SpaceFull => "space full",
            Self::Stalled => "stalled",
            Self::KeyUnreachable => "key unreachable",
            Self::JobHeldUp => "job held up",
            Self::Awaited => "awaited",
            Self::LetGo => "let go",
            Self::Asked => "asked",
            Self::Served => "served",
        }
    }
}

impl DiskRow {
    /// One of which nothing is known yet but that it is there.
    pub fn unknown(id: Uuid, socket: PathBuf) -> Self {
        Self {
            id,
            name: String::new(),
            standing: Standing::Asked,
            silent: None,
            size_bytes: None,
            waiting_attaches: 0,
            rates: None,
            in_flight: None,
            wait_for_space: None,
            errors: None,
            key: None,
            limits: None,
            serving: None,
            job: None,
            layers: Vec::new(),
            events: 0,
            last_event: None,
            socket,
        }
    }

    /// Takes what the disk has answered.
    pub(crate) fn put(&mut self, answer: Result<MetricsAnswer, String>, rates: Option<Rates>) {
        let (id, socket) = (self.id, std::mem::take(&mut self.socket));
        let mut row = Self::unknown(id, socket);
        match answer {
            Ok(MetricsAnswer::Metrics(metrics)) => {
                let metrics = *metrics;
                if let Some(counters) = &metrics.counters {
                    let errors = counters.operations.iter().map(|counted| counted.errors);
                    row.errors = Some(errors.fold(0, u64::saturating_add));
                    row.in_flight = Some(counters.in_flight);
                    row.wait_for_space = Some(counters.wait_for_space);
                }
                row.size_bytes = Some(metrics.size_bytes);
                row.limits = metrics.limits;
                row.layers = metrics.layers;
                row.events = metrics.events;
                row.last_event = metrics.last_event;
                row.rates = rates;
                row.put_status(metrics.status, Some(metrics.checks));
            }
            Ok(MetricsAnswer::Status(status)) => row.put_status(*status, None),
            Ok(MetricsAnswer::Unknown) => row.silent = Some("it knows no such question".into()),
            Err(why) => row.silent = Some(why),
        }
        row.standing = row.standing_now();
        *self = row;
    }

    fn put_status(&mut self, status: KeyStatus, checks: Option<CheckCounts>) {
        self.key = Some(KeyRow {
            state: status.state,
            since: status.since,
            until: status.until,
            reason: status.reason,
            dek: status.dek,
            url: status.key_url,
            last_granted: status.last_granted,
            check_interval_seconds: status.check_interval_seconds,
            checks,
        });
        self.serving = status.offered;
        self.job = status.job;
    }

    fn is_stalled(&self) -> bool {
        self.serving
            .as_ref()
            .is_some_and(|serving| serving.stall.is_some())
    }

    fn standing_now(&self) -> Standing {
        let Some(key) = &self.key else {
            return Standing::Silent;
        };
        let hold = self.serving.as_ref().map(|serving| serving.disk);
        let is_held_up = |job: &JobStatus| job.error.is_some();
        match (key.state, hold) {
            // The attach that waits has no key to check.
            (_, Some(DiskHold::Awaited)) => Standing::Awaited,
            (_, Some(DiskHold::LetGo)) => Standing::LetGo,
            (KeyState::KeyRevoked, _) => Standing::KeyRevoked,
            _ if self.wait_for_space > Some(0) => Standing::SpaceFull,
            _ if self.is_stalled() => Standing::Stalled,
            (KeyState::KeyUnreachable, _) => Standing::KeyUnreachable,
            _ if self.job.as_ref().is_some_and(is_held_up) => Standing::JobHeldUp,
            (KeyState::Active, _) => Standing::Served,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_shown_by_the_names_of_the_rest() {
        let mut row = DiskRow::unknown(Uuid::nil(), PathBuf::new());
        let limits = |row: &DiskRow| serde_json::to_value(row).unwrap()["limits"].clone();
        assert!(limits(&row).is_null());
        row.limits = Some(Limits {
            iops: Some(100),
            iops_burst: Some(200),
            ..Limits::default()
        });
        let expected = serde_json::json!({
            "iops": 100,
            "iopsBurst": 200,
            "bandwidth": null,
            "bandwidthBurst": null,
        });
        assert_eq!(limits(&row), expected);
    }
}
