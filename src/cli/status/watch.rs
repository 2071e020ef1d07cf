//! `sealdisk status --watch`: what changes, as it changes.

use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::asking::{ask, settings_of};
use crate::cli::output::time_cell;
use crate::cli::progress::cancel_on_signals;
use crate::cli::{CliError, Context};
use alarms::notify::{FAREWELL, Notifier, Target};
use alarms::{Change, Scope, Watcher};
use installation::runtime_dir;

/// How soon a signal is heard.
const LOOK: Duration = Duration::from_millis(100);

/// Looks again and again, until a signal.
pub(super) fn watch(
    context: &Context,
    on_event: &[Target],
    interval: Option<Duration>,
) -> Result<(), CliError> {
    let installation = context.existing_installation()?;
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let attaches = |disk| Some(ask(&runtime_dir, disk)?.facts());
    let stopped = cancel_on_signals()?;
    let notifier = Notifier::start(on_event).map_err(alarms::AlarmsError::Notifier)?;
    let mut watcher = Watcher::default();
    let mut is_first = true;
    while stopped.check().is_ok() {
        let settings = settings_of(&installation);
        match watcher.look(&installation, &settings, Scope::Host, &attaches) {
            Ok(changes) => {
                for change in &changes {
                    if print(context, change).is_err() {
                        // Nobody reads any more.
                        notifier.finish(FAREWELL);
                        return Ok(());
                    }
                    notifier.tell(&change.event(OffsetDateTime::now_utc()));
                }
            }
            Err(error) if is_first => return Err(error.into()),
            Err(error) => log::warn!("alarms are not looked for this time: {error}"),
        }
        if std::mem::take(&mut is_first) {
            // Only systemd sets the socket's name in the environment; without it this does nothing.
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        }
        let next = Instant::now() + interval.unwrap_or_else(|| settings.look_interval());
        while stopped.check().is_ok() && Instant::now() < next {
            std::thread::sleep(LOOK.min(next.saturating_duration_since(Instant::now())));
        }
    }
    notifier.finish(FAREWELL);
    Ok(())
}

fn print(context: &Context, change: &Change) -> std::io::Result<()> {
    let now = OffsetDateTime::now_utc();
    let sentence = format!("{} {change}", time_cell(Some(now)));
    context.output.event_in_words(&sentence, &change.event(now))
}
