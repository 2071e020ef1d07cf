//! The commands of `disk` that change its layers: making a clone, reverting, flattening, and giving it
//! a new DEK.

use clap::{ArgGroup, Args};
use indicatif::ProgressBar;

use super::disk::{cancel_on_signals, show_bar, show_disk};
use super::{CliError, Context};
use crate::control::attach::LayerChanges;
use crate::control::disks::{JobChange, JobProgress, parse_size};
use crate::control::runtime_dir;
use crate::envelope::JobKind;

/// Arguments of `disk flatten` and `disk rotate-dek`.
#[derive(Args)]
#[command(group(ArgGroup::new("change")))]
pub struct JobArgs {
    /// The disk
    name: String,
    /// Copy this much in a second at most: bytes, or a number with KiB, MiB or GiB
    #[arg(long, value_parser = parse_rate, value_name = "SIZE")]
    rate: Option<u64>,
    /// Only begin, when nobody uses the disk: the next attach or --resume goes on
    #[arg(long)]
    no_wait: bool,
    /// Have what was begun stand still, until it is resumed
    #[arg(long, group = "change", conflicts_with_all = ["rate", "no_wait"])]
    pause: bool,
    /// Go on with what was paused or interrupted, at --rate
    #[arg(long, group = "change")]
    resume: bool,
    /// End what was begun: the disk keeps the layers, and keys, that it has
    #[arg(long, group = "change", conflicts_with_all = ["rate", "no_wait"])]
    abort: bool,
}

/// Arguments of `disk revert`.
#[derive(Args)]
pub struct RevertArgs {
    /// The disk
    name: String,
    /// A snapshot of it
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: String,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

fn parse_rate(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(0) => Err("it must not be zero".into()),
        parsed => parsed,
    }
}

pub(super) fn revert(context: &Context, args: &RevertArgs) -> Result<(), CliError> {
    let question = format!(
        "What the disk {} holds will be what the snapshot {} holds; what was written since is \
         destroyed. Continue?",
        args.name, args.snapshot
    );
    context.output.confirm(&question, args.yes)?;
    with_changes(context, |changes| {
        Ok(changes.revert(&args.name, &args.snapshot)?)
    })?;
    show_disk(context, &args.name)
}

pub(super) fn job(context: &Context, kind: JobKind, args: &JobArgs) -> Result<(), CliError> {
    let change = match (args.pause, args.resume, args.abort) {
        (true, _, _) => Some(JobChange::Pause),
        (_, true, _) => Some(JobChange::Resume(args.rate)),
        (_, _, true) => Some(JobChange::Abort),
        _ => None,
    };
    let bar = ProgressBar::hidden();
    let mut progress = |now: JobProgress| {
        if bar.is_hidden() {
            show_bar(&bar, now.total);
        }
        bar.set_position(now.done);
    };
    let wait = !args.no_wait;
    let done = with_changes(context, |changes| match (change, kind) {
        (Some(change), kind) => {
            changes.change_job(&args.name, kind, change, wait, &mut progress)?;
            Ok(true)
        }
        (None, JobKind::Rotate) => {
            changes.rotate_dek(&args.name, args.rate, wait, &mut progress)?;
            Ok(true)
        }
        (None, JobKind::Flatten | JobKind::Merge) => {
            Ok(changes.flatten(&args.name, args.rate, wait, &mut progress)?)
        }
    });
    bar.finish_and_clear();
    if !done? {
        context.output.note(&format!(
            "note: the disk {} depends on nothing already",
            args.name
        ));
    }
    show_disk(context, &args.name)
}

fn with_changes<T>(
    context: &Context,
    change: impl FnOnce(&LayerChanges<'_>) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let cancel = cancel_on_signals()?;
    let installation = context.installation()?;
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    change(&LayerChanges {
        installation: &installation,
        runtime_dir: &runtime_dir,
        cancel: &cancel,
    })
}
