//! Looking again and again: facts, alarms, and what has changed.

use crate::alarm::Alarm;
use crate::collect::{Collector, Scope};
use crate::error::AlarmsError;
use crate::facts::Attaches;
use crate::find::find;
use crate::settings::Settings;
use crate::tracker::{Change, Tracker};
use installation::Installation;

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
    /// As [`Collector::collect`]; nothing has changed then.
    pub fn look(
        &mut self,
        installation: &Installation,
        settings: &Settings,
        scope: Scope<'_>,
        attaches: Attaches<'_>,
    ) -> Result<Vec<Change>, AlarmsError> {
        let (facts, _) = self
            .collector
            .collect(installation, settings, scope, attaches)?;
        let found = find(&facts, settings);
        Ok(self.tracker.look(found, facts.now))
    }
}
