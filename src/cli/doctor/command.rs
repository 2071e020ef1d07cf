//! The command.

use clap::Args;

use super::check::{Check, Status};
use super::{files, host, programs, sandbox, vaults};
use crate::cli::{CliError, Context};
use disks::may_be_shared;
use installation::runtime_dir;

/// Arguments of `doctor`.
#[derive(Args)]
#[command(after_help = "Examples:
  sealdisk doctor
  sealdisk doctor --query \"[?status != 'ok']\" -o table
  sudo -u disks sealdisk doctor -o json

Run it as the user of `attach`, with its --state-dir and --runtime-dir. It changes nothing. Each disk
encryption set has its vault wrap and unwrap something worthless, which is on record there. Exit status: 0 when nothing fails, 1 when something
does; what is only a warning does not count.")]
pub struct DoctorArgs {}

/// Looks at everything, and prints what was found.
///
/// # Errors
/// When a check fails; the list is printed all the same.
pub fn run(context: &Context) -> Result<(), CliError> {
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let mut checks = vec![
        host::kernel(),
        host::cipher(),
        host::io_uring(),
        host::locked_memory(),
        host::memory(),
        sandbox::confinement(),
        files::runtime(&runtime_dir),
    ];
    match context.place() {
        Ok(place) => {
            checks.push(files::state(&place.state_dir));
            let known = vaults::Known::of(&place);
            checks.extend(files::disks(&place.state_dir, known.directories()));
            let dirs = known.directories();
            checks.push(host::identity(dirs.iter().any(|dir| may_be_shared(dir))));
            checks.push(host::clock(known.latest()));
            checks.extend(known.vaults());
        }
        Err(error) => checks.push(Check::fail(
            "state directory",
            error.message,
            "give --state-dir and --catalog rightly, or set SEALDISK_STATE_DIR and SEALDISK_CATALOG",
        )),
    }
    checks.extend(programs::all());
    context.output.list(&checks)?;
    let failed: Vec<&str> = checks
        .iter()
        .filter(|check| check.status == Status::Fail)
        .map(|check| check.check)
        .collect();
    match failed.is_empty() {
        true => Ok(()),
        false => Err(CliError::new(
            "HostNotFit",
            format!(
                "this host lacks something that disks need ({}); the list on stdout says what to do",
                failed.join(", ")
            ),
        )),
    }
}
