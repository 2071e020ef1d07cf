//! Waiting for the job of a disk: `--wait`, and `sealdisk disk wait`.

use std::time::Duration;

use super::show::show_disk;
use crate::cli::progress::{Progress, cancel_on_signals};
use crate::cli::{CliError, Context};
use installation::envelope::{JobKind, ResourceKind};
use installation::runtime_dir;

/// How often it is looked how far the job is.
const LOOK: Duration = Duration::from_millis(300);

/// Waits until no job is under way of a disk, and shows the disk.
pub(super) fn wait(context: &Context, name: &str) -> Result<(), CliError> {
    wait_for_job(context, name)?;
    show_disk(context, name)
}

/// Waits until no job is under way of a disk, with a progress bar. What the job meets is told once.
pub fn wait_for_job(context: &Context, name: &str) -> Result<(), CliError> {
    let cancel = cancel_on_signals()?;
    let installation = context.installation()?;
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let progress = Progress::new();
    let mut told = None;
    loop {
        let disk = disks::show(&installation, ResourceKind::Disk, name)?;
        let Some(job) = &disk.job else {
            return Ok(());
        };
        if job.job.paused {
            return Err(stands(name, job.job.kind, "is paused"));
        }
        match attach::key_status(&runtime_dir, disk.unique_id) {
            Ok(status) => {
                if let Some(running) = status.job {
                    progress.at(running.bytes_done, running.bytes_total);
                    if running.error.is_some() && running.error != told {
                        let what = running.error.as_deref().unwrap_or_default();
                        progress.aside(|| {
                            context.output.note(&format!(
                                "note: the job of the disk {name} is held up: {what}"
                            ));
                        });
                        told = running.error;
                    }
                }
            }
            // It is in use, as by another command that does the job, or that begins to.
            Err(_) if disk.is_attached() => {}
            Err(_) => {
                return Err(stands(
                    name,
                    job.job.kind,
                    "does not run, since nothing has the disk attached",
                ));
            }
        }
        if cancel.check().is_err() {
            return Err(CliError::new(
                "Interrupted",
                format!(
                    "not waited for any longer; the job of the disk {name} goes on, as `sealdisk disk show \
                     {name}` tells"
                ),
            ));
        }
        std::thread::sleep(LOOK);
    }
}

fn stands(name: &str, kind: JobKind, how: &str) -> CliError {
    // Both go on with whatever is under way.
    let command = match kind {
        JobKind::Rotate => "rotate-dek",
        JobKind::Flatten | JobKind::Merge => "flatten",
    };
    CliError::new(
        "JobNotRunning",
        format!(
            "the job ({kind}) of the disk {name} {how}: continue it with `sealdisk disk {command} {name} --resume`"
        ),
    )
}
