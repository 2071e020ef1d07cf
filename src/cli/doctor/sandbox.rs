//! Whether a data plane can be confined here: tried in a process of its own, which is confined for good.

use std::process::{Command, Stdio};

use super::check::Check;
use crate::cli::CliError;
use sandbox::{Sandbox, SandboxError, try_confinement};

/// The subcommand that is confined.
const COMMAND: &str = "check-confinement";

/// What it says that lacks nothing.
const COMPLETE: &str = "complete";

pub(super) fn confinement() -> Check {
    const CHECK: &str = "sandbox";
    let said = std::env::current_exe().and_then(|program| {
        Command::new(program)
            .arg(COMMAND)
            .env_clear()
            .stdin(Stdio::null())
            .output()
    });
    let advice = match Sandbox::ordinary() {
        Sandbox::Strict => {
            "`attach` refuses to serve disks as root without it: boot with lsm=landlock,…, let a container \
             have it, or give --sandbox best-effort"
        }
        Sandbox::BestEffort => {
            "`attach` serves disks without it and says so: allow unprivileged user namespaces \
             (kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns, \
             user.max_user_namespaces), boot with lsm=landlock,…, or attach as root"
        }
    };
    let lacks = |what: String| match Sandbox::ordinary() {
        Sandbox::Strict => Check::fail(CHECK, what, advice),
        Sandbox::BestEffort => Check::warn(CHECK, what, advice),
    };
    match said {
        Err(error) => Check::warn(CHECK, format!("it could not be tried: {error}"), advice),
        Ok(output) => match String::from_utf8_lossy(&output.stdout).trim() {
            COMPLETE => Check::ok(
                CHECK,
                "namespaces, an empty root directory, no capabilities, Landlock and seccomp",
            ),
            "" => {
                let said = String::from_utf8_lossy(&output.stderr);
                lacks(format!("it could not be tried: {}", said.trim()))
            }
            missing => lacks(format!("a data plane would be {missing}")),
        },
    }
}

/// Confines this process as a data plane is, and tells what of that could not be had. It must have one thread.
pub(in crate::cli) fn tell_confinement(
    tell: impl FnOnce(&str) -> Result<(), CliError>,
) -> Result<(), CliError> {
    match try_confinement() {
        Ok(()) => tell(COMPLETE),
        Err(SandboxError::Missing { missing, .. }) => tell(missing.trim_start_matches("it is ")),
        Err(error) => Err(CliError::new("Sandbox", error.to_string())),
    }
}
