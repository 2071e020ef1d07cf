//! `sealdisk completions`.

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Cli, CliError, Context, named};

/// Arguments of `completions`.
#[derive(Args)]
#[command(after_help = "Example:
  sealdisk completions bash > /etc/bash_completion.d/sealdisk")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(super) fn run(context: &Context, args: &CompletionsArgs) -> Result<(), CliError> {
    let mut script = Vec::new();
    let mut commands = named::with_option(Cli::command());
    generate(args.shell, &mut commands, "sealdisk", &mut script);
    context.output.text(&String::from_utf8_lossy(&script))
}
