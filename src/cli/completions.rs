//! `sealdisk completions`.

use clap::{Args, Command};
use clap_complete::{Shell, generate};

use super::{CliError, Context, named, usage};

/// Arguments of `completions`.
#[derive(Args)]
#[command(after_help = "Example:
  sealdisk completions bash > /etc/bash_completion.d/sealdisk")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(super) fn run(
    context: &Context,
    args: &CompletionsArgs,
    commands: &Command,
) -> Result<(), CliError> {
    let mut script = Vec::new();
    let mut commands = named::with_option(usage::for_people(commands));
    generate(args.shell, &mut commands, "sealdisk", &mut script);
    context.output.text(&String::from_utf8_lossy(&script))
}
