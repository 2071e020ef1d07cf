//! `sealdisk manpages`: the man pages of the package, of the commands' own definitions.

use std::path::PathBuf;

use clap::{Args, Command};

use super::{CliError, named};

/// Arguments of `manpages`.
#[derive(Args)]
pub struct ManpagesArgs {
    /// The directory to write them to
    dir: PathBuf,
}

pub(super) fn run(args: &ManpagesArgs, commands: Command) -> Result<(), CliError> {
    let dir = &args.dir;
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(named::with_option(commands), dir))
        .map_err(|error| {
            let why = format!("cannot write the man pages to {}: {error}", dir.display());
            CliError::new("OutputError", why)
        })
}
