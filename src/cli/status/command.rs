//! The command, and its exit status.

use std::time::Duration;

use clap::Args;

use super::asking::{Attaches, UNKNOWN};
use super::view::{StatusView, counted, screen};
use super::watch::watch;
use crate::cli::attach::duration;
use crate::cli::error::INVALID_ARGUMENT;
use crate::cli::{CliError, Context};
use alarms::notify::Target;
use alarms::{Alarm, Collector, Scope, Settings, Severity, find};

/// Arguments of `status`.
#[derive(Args)]
#[command(after_help = "Examples:
  sealdisk status
  sealdisk status -o json | jq -r '.alarms[] | .code + \" \" + .subject.name'
  sealdisk status --watch --on-event https://alerts.example/hook
  sealdisk status --watch --on-event '/usr/local/bin/page --team storage'

Exit status, as monitoring plugins have it: 0 fine, 1 a warning, 2 something critical (or arguments that make no
sense), 3 not known. With --watch each alarm is printed once when it is raised and once when it is over, until a
signal. docs/alarms.md has each alarm with what to do; `sealdisk alarm` changes from when on something is one.")]
pub struct StatusArgs {
    /// Go on looking, and print what changes
    #[arg(long)]
    watch: bool,
    /// Tell a program or a webhook of what changes: an absolute path with arguments, which gets the event as JSON on
    /// stdin, or an http:// or https:// address, to which it is sent with POST
    #[arg(long, value_name = "COMMAND|URL", requires = "watch")]
    on_event: Vec<Target>,
    /// How often to look [default: `sealdisk alarm show`: 60s]
    #[arg(long, value_name = "TIME", requires = "watch", value_parser = interval)]
    interval: Option<Duration>,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    match interval.is_zero() {
        true => Err("a time of 1 s at least is needed".into()),
        false => Ok(interval),
    }
}

pub fn run(context: &Context, args: &StatusArgs) -> Result<(), CliError> {
    let done = match args.watch {
        true => watch(context, &args.on_event, args.interval),
        false => show(context),
    };
    done.map_err(
        |error| match error.code == ALARMS || error.code == INVALID_ARGUMENT {
            true => error,
            // A failure of the command is no warning.
            false => CliError {
                status: UNKNOWN,
                ..error
            },
        },
    )
}

/// The code of an exit status that says how grave the alarms are.
const ALARMS: &str = "Alarms";

fn show(context: &Context) -> Result<(), CliError> {
    let installation = context.existing_installation()?;
    let settings = Settings::load(installation.state_dir())?;
    let attaches = Attaches::of(context);
    let (facts, disks) =
        Collector::new().collect(&installation, &settings, Scope::Host, &attaches)?;
    let alarms = find(&facts, &settings);
    let statuses = attaches.answers.into_inner();
    let view = StatusView::new(&facts, &disks, &statuses, &alarms);
    match context.output.is_for_people() {
        true => context.output.text(&screen(&view))?,
        false => context.output.show(&view)?,
    }
    verdict(&alarms)
}

/// The exit status.
fn verdict(alarms: &[Alarm]) -> Result<(), CliError> {
    let Some(worst) = alarms.iter().map(|alarm| alarm.severity).max() else {
        return Ok(());
    };
    let said = format!("{}; docs/alarms.md says what to do", counted(alarms));
    Err(CliError {
        status: match worst {
            Severity::Warning => 1,
            Severity::Critical => 2,
        },
        ..CliError::new(ALARMS, said)
    })
}
