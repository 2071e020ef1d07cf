//! Looking again and again: facts, alarms, and what has changed.

use time::OffsetDateTime;

use crate::alarm::{Alarm, AlarmCode, Severity, Subject, SubjectKind};
use crate::collect::{Collector, Scope};
use crate::error::AlarmsError;
use crate::facts::Attaches;
use crate::find::find;
use crate::settings::Settings;
use crate::tracker::{Change, Tracker};
use installation::Installation;

/// What an alarm is about that says nothing could be looked at.
const BLIND: &str = "watcher";

/// Looks at an installation again and again.
#[derive(Debug, Default)]
pub struct Watcher {
    collector: Collector,
    tracker: Tracker,
}

impl Watcher {
    /// One that goes on from alarms that were told of before.
    pub fn resume(told: impl IntoIterator<Item = Alarm>) -> Self {
        Self {
            collector: Collector::new(),
            tracker: Tracker::resume(told),
        }
    }

    /// Looks once more. What has changed since the look before.
    ///
    /// # Errors
    /// As [`Collector::collect`]; that is an alarm too, which [`Watcher::blind`] gives.
    pub fn look(
        &mut self,
        installation: &Installation,
        settings: &Settings,
        scope: Scope<'_>,
        attaches: &dyn Attaches,
    ) -> Result<Vec<Change>, AlarmsError> {
        let (facts, _) = self
            .collector
            .collect(installation, settings, scope, attaches)?;
        let found = find(&facts, settings);
        Ok(self.tracker.look(found, facts.now))
    }

    /// Notes that nothing could be looked at this time. What is to be told of that: once, however often it is so, and
    /// when it is over.
    pub fn blind(&mut self, error: &impl ToString) -> Vec<Change> {
        let alarm = Alarm {
            code: AlarmCode::NotKnown,
            severity: Severity::Critical,
            subject: Subject::new(SubjectKind::Installation, BLIND),
            since: None,
            message: format!(
                "alarms are not looked for, since what they are about cannot be read ({}): nothing that breaks is told",
                error.to_string().replace(char::is_control, " ")
            ),
            remedy: "see to it that the state directory can be read; what watches goes on by itself then".into(),
        };
        self.tracker.look_blind(alarm, OffsetDateTime::now_utc())
    }

    /// Whether nothing could be looked at when it was last tried.
    pub fn is_blind(&self) -> bool {
        self.tracker.is_blind()
    }
}
