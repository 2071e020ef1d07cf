//! Disks that move: `sealdisk disk copy`, `register` and `unregister`.

use std::path::PathBuf;

use clap::Args;

use super::show::show_disk;
use crate::cli::progress::{Progress, cancel_on_signals};
use crate::cli::{CliError, Context};
use disks::RegisterRequest;
use installation::runtime_dir;

#[derive(Args)]
pub(super) struct CopyArgs {
    /// The disk
    name: String,
    /// The directory to create
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

#[derive(Args)]
pub(super) struct RegisterArgs {
    /// The directory of the disk's header
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The disk's name here [default: the one in its header]
    #[arg(long)]
    name: Option<String>,
    /// The disk encryption set here that may use its key [default: the one that its header names]
    #[arg(long, value_name = "NAME")]
    disk_encryption_set: Option<String>,
}

pub(super) fn copy(context: &Context, args: &CopyArgs) -> Result<(), CliError> {
    let cancel = cancel_on_signals()?;
    let installation = context.installation()?;
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let progress = Progress::new();
    Ok(disks::copy(
        &installation,
        &args.name,
        &args.to,
        &runtime_dir,
        &cancel,
        |size| progress.begin(size),
    )?)
}

pub(super) fn register(context: &Context, args: RegisterArgs) -> Result<(), CliError> {
    let installation = context.installation()?;
    let request = RegisterRequest {
        directory: args.dir,
        name: args.name,
        disk_encryption_set: args.disk_encryption_set,
    };
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let name = disks::register(&installation, &request, &runtime_dir)?;
    show_disk(context, &name)
}

pub(super) fn unregister(context: &Context, name: &str) -> Result<(), CliError> {
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let directory = disks::unregister(&context.installation()?, name, &runtime_dir)?;
    context.output.note(&format!(
        "the disk {name} is unregistered; its files stay in {}",
        directory.display()
    ));
    Ok(())
}
