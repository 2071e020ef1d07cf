//! What happened: audit records of all logs, and events of attached disks.

use std::collections::{HashMap, VecDeque};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use attach::ToldEvent;
use vault::audit::Entry;

/// Entries that are kept, of what matters and of what is routine.
const MAX_KEPT: [usize; 2] = [4000, 1000];
/// Records of a log that are looked at first, from its end.
pub(crate) const LOOK_BACK: u64 = 3000;
/// Entries of an answer.
const MAX_ANSWER: usize = 2000;

/// What an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Topic {
    /// A key is made, rotated, changed, deleted or brought back.
    Key,
    /// Somebody may do something, or no more.
    Access,
    /// A DEK is handed out, destroyed or wrapped anew.
    Disk,
    /// A vault or a log as a whole.
    Vault,
    /// Something that an attached disk tells.
    Event,
    /// A key is used or looked at, as at every check.
    Use,
}

impl Topic {
    /// By the name of an operation of an audit log.
    fn of(operation: &str) -> Self {
        const USES: [&str; 8] = [
            "KeyWrap",
            "KeyUnwrap",
            "KeyEncrypt",
            "KeyDecrypt",
            "KeyGet",
            "KeyList",
            "KeyRotationPolicyGet",
            "TokenIssue",
        ];
        const ACCESS: [&str; 6] = [
            "VaultSetPolicy",
            "VaultDeletePolicy",
            "Identity",
            "DiskEncryptionSet",
            "Login",
            "Token",
        ];
        let begins = |name: &&str| operation.starts_with(*name);
        match operation {
            _ if USES.iter().any(begins) => Self::Use,
            _ if ACCESS.iter().any(begins) => Self::Access,
            _ if operation.starts_with("Key") => Self::Key,
            _ if operation.starts_with("Dek") || operation.starts_with("Disk") => Self::Disk,
            _ => Self::Vault,
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Happened {
    /// Its number, which grows.
    n: u64,
    /// When, RFC 3339.
    time: String,
    topic: Topic,
    /// The name of the operation or of the event.
    what: String,
    /// The log; nothing of an event.
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
    /// Its number in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    /// The object id of who did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// The code of the refusal; nothing when it was allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
}

/// Entries in the order in which they were seen.
#[derive(Debug)]
pub(crate) struct Timeline {
    kept: [VecDeque<Happened>; 2],
    last: u64,
    /// The last event of each disk that was seen.
    events: HashMap<Uuid, OffsetDateTime>,
}

/// Entries behind a number.
#[derive(Debug, Serialize)]
pub(crate) struct Entries<'a> {
    entries: Vec<&'a Happened>,
    /// What to ask with the next time.
    last: u64,
}

impl Timeline {
    pub(crate) fn new() -> Self {
        Self {
            kept: Default::default(),
            last: 0,
            events: HashMap::new(),
        }
    }

    /// Adds a record of a log.
    pub(crate) fn add_record(&mut self, log: &str, entry: Entry) {
        let Entry { seq, time, event } = entry;
        self.add(Happened {
            n: 0,
            time,
            topic: Topic::of(&event.operation),
            what: event.operation,
            log: Some(log.into()),
            seq: Some(seq),
            caller: Some(event.caller),
            origin: Some(event.origin),
            key: event.key,
            version: event.version,
            disk: event.disk,
            detail: event.detail,
            code: event.code,
        });
    }

    /// Adds the events of an attached disk that were not seen yet.
    pub(crate) fn add_events(&mut self, id: Uuid, disk: &str, events: Vec<ToldEvent>) {
        let seen = self.events.get(&id).copied();
        for event in events {
            if seen.is_some_and(|seen| event.time <= seen) {
                continue;
            }
            self.events.insert(id, event.time);
            self.add(Happened {
                n: 0,
                // A time that has no text is none that a clock shows.
                time: event.time.format(&Rfc3339).unwrap_or_default(),
                topic: Topic::Event,
                what: event.event,
                log: None,
                seq: None,
                caller: None,
                origin: None,
                key: None,
                version: None,
                disk: Some(disk.into()),
                detail: Some(event.message),
                code: None,
            });
        }
    }

    fn add(&mut self, happened: Happened) {
        self.last += 1;
        // A refusal matters, whatever was asked for.
        let is_routine = happened.topic == Topic::Use && happened.code.is_none();
        let place = usize::from(is_routine);
        let kept = &mut self.kept[place];
        kept.push_back(Happened {
            n: self.last,
            ..happened
        });
        if kept.len() > MAX_KEPT[place] {
            kept.pop_front();
        }
    }

    /// The entries behind that number, as many as fit into an answer.
    pub(crate) fn after(&self, number: u64) -> Entries<'_> {
        // Of another process.
        let number = if number > self.last { 0 } else { number };
        let newer = |kept: &'_ VecDeque<Happened>| kept.partition_point(|one| one.n <= number);
        let mut entries: Vec<&Happened> = Vec::new();
        for kept in &self.kept {
            entries.extend(kept.iter().skip(newer(kept)));
        }
        entries.sort_by_key(|one| one.n);
        let is_cut = entries.len() > MAX_ANSWER;
        entries.truncate(MAX_ANSWER);
        let last = match entries.last() {
            Some(last) if is_cut => last.n,
            _ => self.last,
        };
        Entries { entries, last }
    }
}

#[cfg(test)]
mod tests {
    use vault::audit::Event;

    use super::*;

    fn entry(seq: u64, operation: &str, code: Option<&str>) -> Entry {
        Entry {
            seq,
            time: "2026-01-01T00:00:00Z".into(),
            event: Event {
                caller: Uuid::nil().to_string(),
                origin: "local".into(),
                operation: operation.into(),
                key: None,
                version: None,
                disk: None,
                detail: None,
                code: code.map(Into::into),
            },
        }
    }

    #[test]
    fn operations_are_of_the_topic_that_one_looks_for() {
        for (operation, topic) in [
            ("KeyUnwrap", Topic::Use),
            ("KeyGetDeleted", Topic::Use),
            ("KeyRotate", Topic::Key),
            ("KeyUpdate", Topic::Key),
            ("KeyRotationPolicySet", Topic::Key),
            ("VaultSetPolicy", Topic::Access),
            ("DiskEncryptionSetRemoveIdentity", Topic::Access),
            ("LoginRefused", Topic::Access),
            ("DekDestroy", Topic::Disk),
            ("DiskRewrap", Topic::Disk),
            ("VaultDelete", Topic::Vault),
            ("AuditArchive", Topic::Vault),
            ("SomethingNew", Topic::Vault),
        ] {
            assert_eq!(Topic::of(operation), topic, "{operation}");
        }
    }

    #[test]
    fn what_is_routine_does_not_push_out_what_matters() {
        let mut timeline = Timeline::new();
        timeline.add_record("vault/v", entry(1, "KeyUpdate", None));
        timeline.add_record("vault/v", entry(2, "KeyUnwrap", Some("KeyDisabled")));
        for seq in 3..5000 {
            timeline.add_record("vault/v", entry(seq, "KeyUnwrap", None));
        }
        let all = timeline.after(0);
        let seqs: Vec<_> = all.entries.iter().filter_map(|one| one.seq).collect();
        assert_eq!(seqs[..2], [1, 2]);
        assert_eq!(seqs.len(), 2 + MAX_KEPT[1]);
        assert!(timeline.after(all.last).entries.is_empty());
        assert_eq!(timeline.after(1_000_000).entries.len(), seqs.len());
    }

    #[test]
    fn an_answer_has_an_end_and_goes_on() {
        let mut timeline = Timeline::new();
        for seq in 0..3000 {
            timeline.add_record("vault/v", entry(seq, "KeyUpdate", None));
        }
        let first = timeline.after(0);
        assert_eq!(first.entries.len(), MAX_ANSWER);
        let rest = timeline.after(first.last);
        assert_eq!(rest.entries.len(), 1000);
        assert_eq!(rest.last, 3000);
    }

    #[test]
    fn an_event_is_told_once() {
        let mut timeline = Timeline::new();
        let at = |seconds| ToldEvent {
            time: OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(seconds),
            event: "Attached".into(),
            message: "the disk d is attached".into(),
        };
        let id = Uuid::nil();
        timeline.add_events(id, "d", vec![at(1), at(2)]);
        timeline.add_events(id, "d", vec![at(1), at(2), at(3)]);
        assert_eq!(timeline.after(0).entries.len(), 3);
    }
}
