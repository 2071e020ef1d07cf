//! `sealdisk status --watch`: what changes, as it changes.

use std::io;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::asking::{Attaches, UNKNOWN, settings_of};
use crate::cli::output::time_cell;
use crate::cli::progress::cancel_on_signals;
use crate::cli::{CliError, Context};
use alarms::notify::{FAREWELL, Notifier, Target};
use alarms::{
    Alarm, AlarmCode, AlarmsError, Change, Scope, Settings, Severity, Subject, SubjectKind, Watcher,
};
use installation::{Installation, InstallationError, Place};

/// How soon a signal is heard.
const LOOK: Duration = Duration::from_millis(100);

/// Looks again and again, until a signal. What cannot be looked at is told too, once, and is no reason to end.
pub(super) fn watch(
    context: &Context,
    on_event: &[Target],
    interval: Option<Duration>,
) -> Result<(), CliError> {
    let place = context.place()?;
    // A directory that was mistyped would be watched for ever.
    let missing = |error: &InstallationError| {
        matches!(
            error,
            InstallationError::Missing { .. } | InstallationError::MissingOnServer { .. }
        )
    };
    if let Some(error) = Installation::open_existing(&place).err().filter(missing) {
        return Err(error.into());
    }
    context.output.check_query(&example())?;
    let stopped = cancel_on_signals()?;
    let notifier = Notifier::start(on_event).map_err(AlarmsError::Notifier)?;
    let mut watcher = Watcher::default();
    let mut settings = Settings::default();
    let mut is_first = true;
    let mut printed = Ok(());
    while stopped.check().is_ok() && printed.is_ok() {
        let looked = look(context, &place, &mut watcher, &mut settings);
        let changes = looked.unwrap_or_else(|error| watcher.blind(&error));
        for change in &changes {
            notifier.tell(&change.event(OffsetDateTime::now_utc()));
            printed = printed.and_then(|()| print(context, change));
        }
        if std::mem::take(&mut is_first) {
            // Only systemd sets the socket's name in the environment; without it this does nothing.
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        }
        let next = Instant::now() + interval.unwrap_or_else(|| settings.look_interval());
        while printed.is_ok() && stopped.check().is_ok() && Instant::now() < next {
            std::thread::sleep(LOOK.min(next.saturating_duration_since(Instant::now())));
        }
    }
    notifier.finish(FAREWELL);
    end(printed, watcher.is_blind())
}

/// An event like those that are printed.
fn example() -> String {
    let now = OffsetDateTime::now_utc();
    let alarm = Alarm {
        code: AlarmCode::DiskDirty,
        severity: Severity::Warning,
        subject: Subject::new(SubjectKind::Disk, "web1"),
        since: Some(now),
        message: "what is the matter".into(),
        remedy: "what to do".into(),
    };
    Change::Raised(alarm).event(now)
}

/// Looks once. What is served is opened anew each time: a catalog that was moved away is still there for who has it
/// open.
fn look(
    context: &Context,
    place: &Place,
    watcher: &mut Watcher,
    settings: &mut Settings,
) -> Result<Vec<Change>, AlarmsError> {
    let installation = Installation::open_existing(place)?;
    *settings = settings_of(&installation);
    let attaches = Attaches::of(context);
    watcher.look(&installation, settings, Scope::Host, &attaches)
}

/// How it has ended.
fn end(printed: io::Result<()>, is_blind: bool) -> Result<(), CliError> {
    match printed {
        // Nobody reads any more.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(CliError::new("BadParameter", error.to_string())),
        Ok(()) if is_blind => Err(CliError {
            status: UNKNOWN,
            ..CliError::new(
                "NotKnown",
                "alarms could not be looked for at the end: what is not known is not safe",
            )
        }),
        Ok(()) => Ok(()),
    }
}

fn print(context: &Context, change: &Change) -> io::Result<()> {
    let now = OffsetDateTime::now_utc();
    let sentence = format!("{} {change}", time_cell(Some(now)));
    context.output.event_in_words(&sentence, &change.event(now))
}
