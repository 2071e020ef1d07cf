//! `sealdisk serve`: the management API beside the vaults.

use std::path::{Path, PathBuf};

use clap::Args;

use super::keyvault::{self, Management, run_serve};
use super::{CliError, Context};

/// Arguments of `serve`.
#[derive(Args)]
pub struct ServeApiArgs {
    /// A name of this host by which clients on others reach the management API, besides localhost and the address
    /// of --listen; not a domain of vaults
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
    /// Let clients of the management API import images below this directory, as file:///DIR/IMAGE, who may make disks
    /// in the whole subscription; no link leads out of it
    #[arg(long, value_name = "DIR")]
    import_dir: Option<PathBuf>,
    #[command(flatten)]
    serve: keyvault::ServeArgs,
}

pub(super) fn run(context: &Context, args: ServeApiArgs) -> Result<(), CliError> {
    let management = Management {
        hosts: args.host,
        import_dir: args.import_dir.as_deref().map(directory).transpose()?,
    };
    run_serve(
        context,
        context.installation()?,
        args.serve,
        Some(management),
    )
}

/// The absolute path of a directory that is there.
fn directory(given: &Path) -> Result<PathBuf, CliError> {
    let cannot = |error| CliError::new("FileSystem", format!("cannot find --import-dir: {error}"));
    let path = std::path::absolute(given).map_err(cannot)?;
    match path.metadata().map_err(cannot)?.is_dir() {
        true => Ok(path),
        false => Err(CliError::usage(format!(
            "--import-dir: {} is no directory",
            given.display()
        ))),
    }
}
