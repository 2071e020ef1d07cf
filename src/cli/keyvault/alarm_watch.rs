//! Alarms of served vaults: keys and certificates near their end, identities near the limit, room for the logs.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use time::OffsetDateTime;

use crate::cli::CliError;
use alarms::notify::{self, Target};
use alarms::{AlarmsError, Change, NoAttaches, Scope, Settings, Watcher};
use installation::{Installation, Place};

/// How long the process that tells of events may take to take one.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is looked at while vaults are served.
pub(super) struct VaultWatch {
    pub(super) place: Place,
    /// The operator's own certificate.
    pub(super) certificate: Option<PathBuf>,
}

impl VaultWatch {
    /// Looks from now on, until the end of the process, and tells these targets.
    ///
    /// # Errors
    /// When what tells of events, or the thread that looks, cannot be started.
    pub(super) fn spawn(self, targets: &[Target]) -> Result<(), CliError> {
        let fail = |e| CliError::from(AlarmsError::Notifier(e));
        let told = start(targets).map_err(fail)?;
        let thread = std::thread::Builder::new().name("alarms".into());
        let spawned = thread.spawn(move || self.run(told));
        spawned.map(drop).map_err(fail)
    }

    fn run(self, mut told: Option<UnixStream>) {
        let mut watcher = Watcher::default();
        let mut interval = Settings::default().look_interval();
        loop {
            let changes = match self.look(&mut watcher) {
                Ok((changes, next)) => {
                    interval = next;
                    changes
                }
                Err(error) => watcher.blind(&error),
            };
            for change in &changes {
                tell(change, &mut told);
            }
            std::thread::sleep(interval);
        }
    }

    fn look(&self, watcher: &mut Watcher) -> Result<(Vec<Change>, Duration), AlarmsError> {
        // Of its own: the one that is served has its connections busy.
        let installation = Installation::open_existing(&self.place)?;
        let mut settings = Settings::load(installation.state_dir())?;
        settings.certificates.extend(self.certificate.clone());
        let changes = watcher.look(&installation, &settings, Scope::Vaults, &NoAttaches)?;
        Ok((changes, settings.look_interval()))
    }
}

/// Starts the process that tells of events, if there is anybody to tell.
fn start(targets: &[Target]) -> std::io::Result<Option<UnixStream>> {
    if targets.is_empty() {
        return Ok(None);
    }
    let (ours, its) = UnixStream::pair()?;
    ours.set_write_timeout(Some(PATIENCE))?;
    // It ends after this process, which has nothing to wait for.
    notify::spawn(&std::env::current_exe()?, targets, its.into())?;
    Ok(Some(ours))
}

fn tell(change: &Change, told: &mut Option<UnixStream>) {
    match change {
        Change::Raised(_) => log::warn!("{change}"),
        Change::Cleared(_) => log::info!("{change}"),
    }
    let Some(socket) = told else {
        return;
    };
    let event = change.event(OffsetDateTime::now_utc());
    if let Err(error) = writeln!(socket, "{event}") {
        log::error!(
            "nobody is told of alarms any more, since what tells of them has ended: {error}"
        );
        *told = None;
    }
}
