//! The commands of `disk` that change its layers: reverting, flattening, and giving it a new DEK.

use clap::{ArgGroup, Args};

use super::show::show_disk;
use super::wait::wait_for_job;
use crate::cli::progress::{Progress, cancel_on_signals};
use crate::cli::{CliError, Context};
use attach::LayerChanges;
use disks::{Applied, Disk, JobChange, JobProgress, LayerOp, parse_size};
use installation::catalog::Kind;
use installation::envelope::JobKind;
use installation::runtime_dir;

/// Arguments of `disk flatten` and `disk rotate-dek`.
#[derive(Args)]
#[command(group(ArgGroup::new("change")))]
pub struct JobArgs {
    /// The disk
    name: String,
    /// Copy at most this much per second: bytes, or a number with KiB, MiB or GiB
    #[arg(long, value_parser = parse_rate, value_name = "SIZE")]
    rate: Option<u64>,
    /// Wait until the job is done, with a progress bar, also if the disk is attached
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Only start the job of an unattached disk; the next attach or --resume continues it
    #[arg(long)]
    no_wait: bool,
    /// Pause the running job
    #[arg(long, group = "change", conflicts_with_all = ["rate", "no_wait", "wait"])]
    pause: bool,
    /// Resume a paused or interrupted job, at --rate
    #[arg(long, group = "change")]
    resume: bool,
    /// Abort the job: the disk keeps its present layers and DEKs
    #[arg(long, group = "change", conflicts_with_all = ["rate", "no_wait", "wait"])]
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
    /// Do not ask for confirmation
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
        "The disk {} will be reverted to the snapshot {}; everything written since is destroyed. \
         Continue?",
        args.name, args.snapshot
    );
    context.output.confirm(&question, args.yes)?;
    let snapshot = args.snapshot.clone();
    change(context, &args.name, &LayerOp::Revert { snapshot })?;
    show_disk(context, &args.name)
}

pub(super) fn job(context: &Context, kind: JobKind, args: &JobArgs) -> Result<(), CliError> {
    let change = match (args.pause, args.resume, args.abort) {
        (true, _, _) => Some(JobChange::Pause),
        (_, true, _) => Some(JobChange::Resume(args.rate)),
        (_, _, true) => Some(JobChange::Abort),
        _ => None,
    };
    let rate = args.rate;
    let op = match (change, kind) {
        (Some(change), kind) => LayerOp::Job {
            kind: Some(kind),
            change,
        },
        (None, JobKind::Rotate) => LayerOp::RotateDek { rate },
        (None, JobKind::Flatten | JobKind::Merge) => LayerOp::Flatten { rate },
    };
    let applied = apply(context, &args.name, &op, !args.no_wait)?;
    if args.wait {
        wait_for_job(context, &args.name)?;
    }
    if applied == Applied::Nothing {
        context.output.note(&format!(
            "note: the disk {} is flat already: it depends on no other layer",
            args.name
        ));
    }
    show_disk(context, &args.name)
}

/// Applies an operation, with a progress bar where it waits for the job that it begins.
pub(super) fn apply(
    context: &Context,
    disk: &str,
    op: &LayerOp,
    wait: bool,
) -> Result<Applied, CliError> {
    with_changes(context, wait, |changes| {
        let disk = Disk::find(changes.installation, disk)?;
        let progress = Progress::new();
        let mut shown = |now: JobProgress| progress.at(now.done, now.total);
        Ok(changes.change_layers(&disk, op, &mut shown)?)
    })
}

/// Applies an operation that begins no job.
pub fn change(context: &Context, disk: &str, op: &LayerOp) -> Result<(), CliError> {
    with_changes(context, false, |changes| {
        let catalog = changes.installation.catalog();
        match op {
            LayerOp::CreateSnapshot(new) => catalog.forget_left(new.kind.into(), &new.name)?,
            LayerOp::CloneDisk(new) => catalog.forget_left(Kind::Disk, &new.name)?,
            _ => {}
        }
        let disk = Disk::find(changes.installation, disk)?;
        changes.change_layers(&disk, op, &mut |_| {})?;
        Ok(())
    })
}

/// What changes layers; with `wait` the jobs that it begins are done when it returns, unless the disk is
/// attached.
pub fn with_changes<T>(
    context: &Context,
    wait: bool,
    change: impl FnOnce(&LayerChanges<'_>) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let cancel = cancel_on_signals()?;
    let installation = context.installation()?;
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    change(&LayerChanges {
        installation: &installation,
        runtime_dir: &runtime_dir,
        cancel: &cancel,
        wait,
    })
}
