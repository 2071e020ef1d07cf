//! What snapshots and images have in common: how they are shown, wrapped anew and deleted.

use std::path::PathBuf;

use clap::Args;

use super::disk::{wait_for_job, with_changes};
use super::progress::Progress;
use super::{CliError, Context};
use attach::LayerChanges;
use disks::delete_source;
use installation::Installation;
use installation::envelope::{Job, JobKind, ResourceKind};

#[derive(Args)]
pub(super) struct UpdateArgs {
    /// Its name
    name: String,
    /// Wrap under the active key of this disk encryption set
    #[arg(
        long,
        value_name = "NAME",
        required_unless_present = "platform_managed"
    )]
    disk_encryption_set: Option<String>,
    /// Wrap under the platform-managed key
    #[arg(long, conflicts_with = "disk_encryption_set")]
    platform_managed: bool,
}

#[derive(Args)]
pub(super) struct DeleteArgs {
    /// Its name
    name: String,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// Wait until its layers are merged, with a progress bar, also if the disk is attached
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Leave the merge to the next deletion of a snapshot
    #[arg(long)]
    no_wait: bool,
}

/// The process that has the disk attached may be in another directory.
pub(super) fn absolute(dir: Option<PathBuf>) -> Result<Option<PathBuf>, CliError> {
    dir.map(std::path::absolute)
        .transpose()
        .map_err(|e| CliError::new("FileSystem", format!("cannot find --data-dir: {e}")))
}

pub(super) fn show(context: &Context, kind: ResourceKind, name: &str) -> Result<(), CliError> {
    let view = disks::show(&context.installation()?, kind, name)?;
    context.output.show(&view)
}

pub(super) fn update(
    context: &Context,
    kind: ResourceKind,
    args: &UpdateArgs,
) -> Result<(), CliError> {
    let set = args.disk_encryption_set.as_deref();
    disks::update(&context.installation()?, kind, &args.name, set)?;
    show(context, kind, &args.name)
}

pub(super) fn delete(
    context: &Context,
    kind: ResourceKind,
    args: &DeleteArgs,
) -> Result<(), CliError> {
    with_changes(context, true, |changes| {
        // A name that does not exist is refused before the question.
        disks::show(changes.installation, kind, &args.name)?;
        let question = format!("The {kind} {} will be destroyed. Continue?", args.name);
        context.output.confirm(&question, args.yes)?;
        delete_source(changes.installation, kind, &args.name, changes.runtime_dir)?;
        if args.no_wait {
            return Ok(());
        }
        if merge_left(context, changes, kind, &args.name) && args.wait {
            wait_for_merges(context, changes)?;
        }
        Ok(())
    })
}

/// Merges what one that is deleted has left; whether all that can be is merged.
pub(super) fn merge_left(
    context: &Context,
    changes: &LayerChanges<'_>,
    kind: ResourceKind,
    name: &str,
) -> bool {
    let progress = Progress::new();
    let merged = changes.merge_all(&mut |done, total| progress.at(done, total));
    drop(progress);
    // It is deleted; the rest is done by the next deletion.
    merged
        .inspect_err(|error| {
            context.output.note(&format!(
                "note: the {kind} {name} is deleted, but its layers are not merged yet: {error}"
            ));
        })
        .is_ok()
}

/// Waits until no disk has a merge under way that can be done now: those of a disk are done one after the other.
fn wait_for_merges(context: &Context, changes: &LayerChanges<'_>) -> Result<(), CliError> {
    while let Some(disk) = merging(changes.installation)? {
        wait_for_job(context, &disk)?;
        changes.merge_all(&mut |_, _| {})?;
    }
    Ok(())
}

/// A disk with a merge under way, of those that have a layer which is to be merged.
fn merging(installation: &Installation) -> Result<Option<String>, CliError> {
    let catalog = installation.catalog();
    for layer in catalog.merges_here()? {
        for row in catalog.resources_with_layer(layer)? {
            if row.record.kind != ResourceKind::Disk {
                continue;
            }
            let disk = disks::outline(installation, ResourceKind::Disk, &row.record.name)?;
            let is_merge = |job: &Job| job.kind == JobKind::Merge && !job.paused;
            if disk.job.as_ref().is_some_and(is_merge) {
                return Ok(Some(disk.name));
            }
        }
    }
    Ok(None)
}
