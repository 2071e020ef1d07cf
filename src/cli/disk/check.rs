//! `sealdisk disk check`.

use clap::Args;

use crate::cli::{CliError, Context};
use disks::{Disk, ProblemKind, Unflushed};
use installation::runtime_dir;

#[derive(Args)]
pub(super) struct CheckArgs {
    /// The disk
    name: String,
    /// Repair what is safe to repair
    #[arg(long)]
    repair: bool,
    /// Give up completed but unflushed writes whose runtime map is lost, or where the data file cannot
    /// be read
    #[arg(long, requires = "repair")]
    discard_unflushed: bool,
    /// Give up what is left on this host, which is gone and its guest with it
    #[arg(
        long,
        value_name = "HOST",
        requires = "repair",
        conflicts_with = "discard_unflushed"
    )]
    take_over_from: Option<String>,
}

/// Prints what was found; the exit status says how grave it is.
pub(super) fn check(context: &Context, args: &CheckArgs) -> Result<(), CliError> {
    let name = &args.name;
    let installation = context.installation()?;
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let unflushed = match (&args.take_over_from, args.discard_unflushed) {
        (Some(host), _) => Disk::find(&installation, name)?.take_over_from(host)?,
        (None, true) => Unflushed::GivenUp,
        (None, false) => Unflushed::Needed,
    };
    let report = disks::check(&installation, name, args.repair, (&runtime_dir, unflushed))?;
    context.output.show(&report)?;
    let (damage, leaks) = (
        report.remaining(ProblemKind::Damage),
        report.remaining(ProblemKind::Leak),
    );
    match (damage, leaks) {
        (0, 0) => Ok(()),
        (0, _) => Err(CliError {
            status: 3,
            ..CliError::new(
                "DiskLeaks",
                format!("the disk {name} has {leaks} leaks; --repair gives space back"),
            )
        }),
        _ => Err(CliError {
            status: 2,
            ..CliError::new(
                "DiskDamaged",
                format!(
                    "the disk {name} is damaged in {damage} ways; the report on stdout names them"
                ),
            )
        }),
    }
}
