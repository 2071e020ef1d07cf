//! `sealdisk disk update`.

use clap::Args;

use super::layers::apply;
use super::show::show;
use crate::cli::limits::LimitArgs;
use crate::cli::{CliError, Context};
use attach::set_limits;
use disks::LayerOp;
use installation::envelope::ResourceKind;
use installation::runtime_dir;

#[derive(Args)]
pub(super) struct UpdateArgs {
    /// The disk
    name: String,
    /// Wrap under the active key of this disk encryption set
    #[arg(long, value_name = "NAME", group = "key")]
    disk_encryption_set: Option<String>,
    /// Wrap under the platform-managed key
    #[arg(long, group = "key")]
    platform_managed: bool,
    /// The limits of the attached disk, instead of those it has
    #[command(flatten)]
    limits: LimitArgs,
    /// Remove all limits of the attached disk
    #[arg(long, conflicts_with = "limits")]
    no_limits: bool,
}

/// Gives the disk a DEK of the kind that its set has, and copies its data under it.
fn change_passes(context: &Context, name: &str) -> Result<(), CliError> {
    context.output.note(&format!(
        "note: the disk {name} gets a new DEK, and its data is copied under it, since its disk encryption set encrypts \
         another number of times; `sealdisk disk show {name}` shows how far it is"
    ));
    apply(context, name, &LayerOp::RotateDek { rate: None }, true).map(drop)
}

pub(super) fn update(context: &Context, args: UpdateArgs) -> Result<(), CliError> {
    let installation = context.installation()?;
    let limit = args.no_limits || !args.limits.is_empty();
    let wrap = args.platform_managed || args.disk_encryption_set.is_some();
    if !limit && !wrap {
        return Err(CliError::usage(
            "nothing to update: give --disk-encryption-set, --platform-managed, limits or --no-limits",
        ));
    }
    if wrap {
        disks::update(
            &installation,
            ResourceKind::Disk,
            &args.name,
            args.disk_encryption_set.as_deref(),
        )?;
        let set = args.disk_encryption_set.as_deref();
        if disks::needs_other_dek(&installation, &args.name, set)? {
            change_passes(context, &args.name)?;
        }
    }
    let view = disks::show(&installation, ResourceKind::Disk, &args.name)?;
    if limit {
        let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
        set_limits(&runtime_dir, view.unique_id, &args.limits.limits())?;
    }
    show(context, view)
}
