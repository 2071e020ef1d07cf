//! The process that tells of the events of an attach or of served vaults.

use clap::Args;

use super::CliError;
use alarms::notify::{Place, Target, pass_on};

/// Arguments of the process. The events it reads on its standard input.
#[derive(Args)]
pub struct NotifierArgs {
    /// Who is told
    #[arg(required = true)]
    targets: Vec<Target>,
    /// Go on when the process with that id has ended
    #[arg(long, value_name = "PID")]
    stand_by_for: Option<u32>,
    /// How often one was started again
    #[arg(long, value_name = "N", default_value_t = 0)]
    again: u32,
}

/// Tells of events until there are no more.
pub(super) fn run(args: &NotifierArgs) -> Result<(), CliError> {
    let place = Place {
        stand_by_for: args.stand_by_for,
        again: args.again,
    };
    pass_on(&args.targets, place).map_err(|e| {
        CliError::new(
            "EventNotifier",
            format!("events are not told any more: {e}"),
        )
    })
}
