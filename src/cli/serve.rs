//! `sealdisk serve`: the management API beside the vaults.

use clap::Args;

use super::keyvault::{self, run_serve};
use super::{CliError, Context};

/// Arguments of `serve`.
#[derive(Args)]
pub struct ServeApiArgs {
    /// A name of this host by which clients on others reach the management API, besides localhost and the address
    /// of --listen; not a domain of vaults
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
    #[command(flatten)]
    serve: keyvault::ServeArgs,
}

pub(super) fn run(context: &Context, args: ServeApiArgs) -> Result<(), CliError> {
    run_serve(
        context,
        context.installation()?,
        args.serve,
        Some(&args.host),
    )
}
