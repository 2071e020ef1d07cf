//! `sealdisk attach`, by QEMU's conventions for vhost-user back-ends.

use std::ffi::OsString;

use clap::Args;

use super::{CliError, Context, Output};

/// Arguments of `attach`.
#[derive(Args)]
#[command(after_help = "Example:\n  sealdisk attach --print-capabilities")]
pub struct AttachArgs {
    /// The disk
    disk: Option<String>,
    /// Print what this back-end can do, as JSON, and ignore all else
    #[arg(long)]
    print_capabilities: bool,
}

/// Arguments of the data plane, which `attach` starts.
#[derive(Args)]
pub struct DataPlaneArgs {}

/// Whether the program was started only to be asked what it can do. QEMU's vhost-user convention
/// has all other arguments ignored then, also those that are unknown, so they are not parsed; and
/// it names a back-end by its program alone, so `attach` need not be there.
pub(super) fn wants_capabilities(arguments: &[OsString]) -> bool {
    let asked = |a: &OsString| a == "--print-capabilities";
    arguments.iter().any(asked)
        && (arguments.get(1).is_some_and(asked) || arguments.iter().any(|a| a == "attach"))
}

/// Prints the capabilities that QEMU's schema `vhost-user.json` defines for block back-ends.
pub(super) fn print_capabilities(output: &Output) -> Result<(), CliError> {
    output.text(r#"{"type": "block", "features": ["read-only", "blk-file"]}"#)
}

pub(super) fn run(context: &Context, args: AttachArgs) -> Result<(), CliError> {
    if args.print_capabilities {
        return print_capabilities(&context.output);
    }
    let disk = args
        .disk
        .ok_or_else(|| CliError::usage("name the disk to attach"))?;
    context.installation()?.catalog().disk(&disk)?;
    Err(CliError::usage("give --socket-path or --fd"))
}

pub(super) fn run_data_plane(_context: &Context, _args: DataPlaneArgs) -> Result<(), CliError> {
    Err(CliError::usage(
        "the data plane is started by `sealdisk attach` only",
    ))
}
