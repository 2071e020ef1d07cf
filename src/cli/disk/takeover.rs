//! `sealdisk disk takeover`: a disk of a host that is gone.

use clap::Args;

use super::show::show_disk;
use crate::cli::{CliError, Context};
use installation::runtime_dir;

#[derive(Args)]
pub(super) struct TakeoverArgs {
    /// The disk
    name: String,
    /// The host that has it is switched off, or cut off from the storage for good
    #[arg(long)]
    host_is_off: bool,
}

pub(super) fn takeover(context: &Context, args: &TakeoverArgs) -> Result<(), CliError> {
    let installation = context.installation()?;
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let name = &args.name;
    let taken = disks::take_over(&installation, name, &runtime_dir, args.host_is_off)?;
    context.output.note(&match taken.from {
        Some(host) => {
            format!(
                "note: the disk {name} was taken over from the host {host}, as it was flushed last"
            )
        }
        None => format!("note: the disk {name} was let go of in order: any host can attach it"),
    });
    show_disk(context, name)
}
