//! Store processes, and what starts them: nobody calls these by hand.

use std::path::PathBuf;

use clap::Args;

use ::store_process::{STORE_PROCESS, serve};
use sandbox::{Launch, Sandbox, User};

use super::CliError;

/// Arguments of a store process. All else it gets over its socket.
#[derive(Args)]
pub struct StoreProcessArgs {
    #[arg(long)]
    sandbox: Sandbox,
    /// As UID:GID.
    #[arg(long)]
    user: Option<User>,
}

/// Arguments of the launcher of store processes.
#[derive(Args)]
pub struct StoreLauncherArgs {
    #[command(flatten)]
    process: StoreProcessArgs,
    /// Where whoever starts it may change files.
    #[arg(long)]
    changed: Vec<PathBuf>,
}

impl StoreProcessArgs {
    fn launch(&self) -> Launch {
        Launch {
            sandbox: self.sandbox,
            user: self.user,
        }
    }
}

/// Runs a store process. It tells errors to whoever has started it, which prints them.
pub(super) fn run(args: &StoreProcessArgs) -> Result<(), CliError> {
    serve(args.launch()).map_err(|error| CliError::new("StoreProcessFailed", error.to_string()))
}

/// Runs the launcher of store processes.
pub(super) fn launch(args: StoreLauncherArgs) -> Result<(), CliError> {
    sandbox::run_launcher(STORE_PROCESS, args.process.launch(), args.changed)
        .map_err(|error| CliError::new("LauncherFailed", error.to_string()))
}
