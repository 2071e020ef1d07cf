//! Which alarms are new, and which are over: each is told once when it is raised and once when it is cleared.

use std::fmt;

use serde::Serialize;
use time::OffsetDateTime;

use crate::alarm::{Alarm, AlarmCode, Severity};

/// An alarm has to be absent for so many looks, one after the other, before it is over. What comes and goes
/// around a threshold is then one alarm, not a flood of them.
const CALM_LOOKS: u32 = 2;

/// What has changed since the look before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is new, or graver than it was.
    Raised(Alarm),
    /// It is over.
    Cleared(Alarm),
}

impl Change {
    /// The alarm that has changed.
    pub fn alarm(&self) -> &Alarm {
        let (Self::Raised(alarm) | Self::Cleared(alarm)) = self;
        alarm
    }

    /// The change as an event, a line of JSON.
    pub fn event(&self, time: OffsetDateTime) -> String {
        #[derive(Serialize)]
        struct View<'a> {
            #[serde(with = "time::serde::rfc3339")]
            time: OffsetDateTime,
            event: &'static str,
            alarm: &'a Alarm,
        }
        let event = match self {
            Self::Raised(_) => "AlarmRaised",
            Self::Cleared(_) => "AlarmCleared",
        };
        let alarm = self.alarm();
        // Only a year beyond 9999 has no such form.
        serde_json::to_string(&View { time, event, alarm }).unwrap_or_default()
    }
}

/// One line for the log.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raised(alarm) => write!(f, "{alarm}"),
            Self::Cleared(alarm) => write!(f, "over: {} of the {}", alarm.code, alarm.subject),
        }
    }
}

/// The alarms that were told of.
#[derive(Debug, Default)]
pub struct Tracker {
    active: Vec<Active>,
    is_blind: bool,
}

#[derive(Debug)]
struct Active {
    alarm: Alarm,
    /// The gravest that was told: one that comes and goes between two degrees is told once in each.
    told: Severity,
    /// For how many looks it was not there.
    absent: u32,
}

impl Active {
    fn new(alarm: Alarm) -> Self {
        Self {
            told: alarm.severity,
            alarm,
            absent: 0,
        }
    }
}

impl Tracker {
    /// With alarms that were told of before, by another process perhaps.
    pub fn resume(told: impl IntoIterator<Item = Alarm>) -> Self {
        let active = told.into_iter().map(Active::new);
        Self {
            active: active.collect(),
            is_blind: false,
        }
    }

    /// The alarms that are there now, as they were told of.
    pub fn active(&self) -> impl Iterator<Item = &Alarm> {
        self.active.iter().map(|active| &active.alarm)
    }

    /// Takes that nothing could be looked at, which `alarm` says: all others stay as they are. What is to be told.
    pub fn look_blind(&mut self, alarm: Alarm, now: OffsetDateTime) -> Vec<Change> {
        self.is_blind = true;
        let known = self.active.iter_mut();
        if let Some(known) = known
            .into_iter()
            .find(|known| known.alarm.id() == alarm.id())
        {
            known.absent = 0;
            let since = known.alarm.since;
            known.alarm = Alarm { since, ..alarm };
            return Vec::new();
        }
        let alarm = Alarm {
            since: Some(now),
            ..alarm
        };
        self.active.push(Active::new(alarm.clone()));
        vec![Change::Raised(alarm)]
    }

    /// Whether nothing could be looked at last.
    pub fn is_blind(&self) -> bool {
        self.is_blind
    }

    /// Takes the alarms of another look. What is to be told: what is new or graver, then what is over. An alarm
    /// about something that could not be looked at this time is not over.
    pub fn look(&mut self, mut found: Vec<Alarm>, now: OffsetDateTime) -> Vec<Change> {
        self.is_blind = false;
        let mut changes = Vec::new();
        for alarm in &mut found {
            match self
                .active
                .iter_mut()
                .find(|known| known.alarm.id() == alarm.id())
            {
                Some(known) => {
                    let graver = alarm.severity > known.told;
                    known.told = known.told.max(alarm.severity);
                    let began = known.alarm.since;
                    alarm.since = alarm.since.or(began);
                    known.absent = 0;
                    known.alarm = alarm.clone();
                    if graver {
                        changes.push(Change::Raised(alarm.clone()));
                    }
                }
                None => {
                    alarm.since = alarm.since.or(Some(now));
                    changes.push(Change::Raised(alarm.clone()));
                    self.active.push(Active::new(alarm.clone()));
                }
            }
        }
        let is_unknown = |alarm: &Alarm| {
            let not_known = |other: &&Alarm| other.code == AlarmCode::NotKnown;
            let mut not_known = found.iter().filter(not_known);
            alarm.code != AlarmCode::NotKnown && not_known.any(|one| one.subject == alarm.subject)
        };
        self.active.retain_mut(|active| {
            let id = active.alarm.id();
            if found.iter().any(|alarm| alarm.id() == id) || is_unknown(&active.alarm) {
                return true;
            }
            active.absent += 1;
            let over = active.absent >= CALM_LOOKS;
            if over {
                changes.push(Change::Cleared(active.alarm.clone()));
            }
            !over
        });
        changes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::alarm::{Subject, SubjectKind};
    use proptest::prelude::*;

    const T0: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn alarm(code: AlarmCode, severity: Severity, name: &str) -> Alarm {
        Alarm {
            code,
            severity,
            subject: Subject::new(SubjectKind::Disk, name),
            since: None,
            message: "m".into(),
            remedy: "r".into(),
        }
    }

    fn warning(name: &str) -> Alarm {
        alarm(AlarmCode::CrashLoop, Severity::Warning, name)
    }

    fn critical(name: &str) -> Alarm {
        alarm(AlarmCode::CrashLoop, Severity::Critical, name)
    }

    fn told(changes: &[Change]) -> Vec<String> {
        let told = |change: &Change| match change {
            Change::Raised(alarm) => format!("+{} {}", alarm.subject.name, alarm.severity),
            Change::Cleared(alarm) => format!("-{}", alarm.subject.name),
        };
        changes.iter().map(told).collect()
    }

    #[test]
    fn an_alarm_is_told_once_when_it_comes_when_it_gets_graver_and_when_it_is_over() {
        let mut tracker = Tracker::default();
        assert_eq!(told(&tracker.look(vec![warning("a")], T0)), ["+a warning"]);
        assert!(tracker.look(vec![warning("a")], T0).is_empty());
        assert_eq!(
            told(&tracker.look(vec![critical("a")], T0)),
            ["+a critical"]
        );
        assert!(
            tracker.look(vec![warning("a")], T0).is_empty(),
            "less grave"
        );
        assert!(
            tracker.look(vec![critical("a")], T0).is_empty(),
            "told already"
        );
        assert!(tracker.look(vec![], T0).is_empty(), "it may come back");
        assert_eq!(told(&tracker.look(vec![], T0)), ["-a"]);
        assert!(tracker.look(vec![], T0).is_empty());
        assert_eq!(tracker.active().count(), 0);
    }

    #[test]
    fn what_comes_and_goes_is_one_alarm() {
        let mut tracker = Tracker::default();
        let mut all = Vec::new();
        for n in 0..100 {
            let found = if n % 2 == 0 {
                vec![warning("a")]
            } else {
                vec![]
            };
            all.extend(tracker.look(found, T0));
        }
        assert_eq!(told(&all), ["+a warning"]);
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_over() {
        let mut tracker = Tracker::default();
        tracker.look(vec![warning("a"), warning("b")], T0);
        let unknown = || vec![alarm(AlarmCode::NotKnown, Severity::Warning, "a")];
        let changes: Vec<_> = (0..9).flat_map(|_| tracker.look(unknown(), T0)).collect();
        assert_eq!(told(&changes), ["+a warning", "-b"]);
        let changes: Vec<_> = (0..9).flat_map(|_| tracker.look(vec![], T0)).collect();
        assert_eq!(
            told(&changes),
            ["-a", "-a"],
            "the alarm, and that it is not known"
        );
    }

    #[test]
    fn to_be_blind_is_told_once_and_nothing_is_over_meanwhile() {
        let mut tracker = Tracker::default();
        tracker.look(vec![warning("a")], T0);
        let blind = || alarm(AlarmCode::NotKnown, Severity::Critical, "watcher");
        let changes: Vec<_> = (0..9)
            .flat_map(|_| tracker.look_blind(blind(), T0))
            .collect();
        assert_eq!(told(&changes), ["+watcher critical"]);
        assert!(tracker.is_blind());
        let changes: Vec<_> = (0..9)
            .flat_map(|_| tracker.look(vec![warning("a")], T0))
            .collect();
        assert_eq!(told(&changes), ["-watcher"]);
        assert!(!tracker.is_blind());
    }

    #[test]
    fn since_is_kept_and_another_process_goes_on() {
        let mut tracker = Tracker::default();
        tracker.look(vec![warning("a")], T0);
        let later = T0 + time::Duration::HOUR;
        tracker.look(vec![warning("a")], later);
        let since = |tracker: &Tracker| tracker.active().next().unwrap().since;
        assert_eq!(since(&tracker), Some(T0));
        let mut next = Tracker::resume(tracker.active().cloned().collect::<Vec<_>>());
        assert!(next.look(vec![warning("a")], later).is_empty());
        assert_eq!(since(&next), Some(T0));
    }

    proptest! {
        /// For each alarm what is told is raised, perhaps graver once, cleared, and so on: never cleared twice,
        /// never raised again as grave as it is.
        #[test]
        fn what_is_told_alternates(looks in proptest::collection::vec(
            proptest::collection::btree_map(0_u8..4, proptest::bool::ANY, 0..4), 0..60))
        {
            let mut tracker = Tracker::default();
            let mut known: BTreeMap<String, Severity> = BTreeMap::new();
            for look in looks {
                let found = look.into_iter().map(|(name, grave)| match grave {
                    true => critical(&name.to_string()),
                    false => warning(&name.to_string()),
                });
                for change in tracker.look(found.collect(), T0) {
                    let name = change.alarm().subject.name.clone();
                    match &change {
                        Change::Raised(alarm) => {
                            let before = known.insert(name, alarm.severity);
                            prop_assert!(before.is_none_or(|before| before < alarm.severity));
                        }
                        Change::Cleared(_) => prop_assert!(known.remove(&name).is_some()),
                    }
                }
                let active: Vec<_> = tracker.active().map(|a| a.subject.name.clone()).collect();
                prop_assert_eq!(active.len(), known.len());
                prop_assert!(active.iter().all(|name| known.contains_key(name)));
            }
        }
    }
}
