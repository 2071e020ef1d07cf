//! The process that tells of the events of an attach or of served vaults.

use clap::Args;

use super::CliError;
use alarms::notify::{Target, pass_on};

/// Arguments of the process. The events it reads on its standard input.
#[derive(Args)]
pub struct NotifierArgs {
    /// Who is told
    #[arg(required = true)]
    targets: Vec<Target>,
}

/// Tells of events until there are no more.
pub(super) fn run(args: &NotifierArgs) -> Result<(), CliError> {
    pass_on(std::io::stdin().lock(), &args.targets).map_err(|e| {
        CliError::new(
            "EventNotifier",
            format!("events are not told any more: {e}"),
        )
    })
}
