//! `sealdisk disk update`.

use clap::Args;

use super::layers::apply;
use super::show::show;
use crate::cli::limits::LimitArgs;
use crate::cli::{CliError, Context};
use attach::set_limits;
use disks::{JobChange, LayerOp};
use installation::envelope::{JobKind, ResourceKind};
use installation::{Installation, runtime_dir};

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

/// Wraps the disk under the key that was asked for. Where the set encrypts another number of times it also gets a DEK of
/// that kind, and its data is copied under it. Where a command of before was cut off there, this one goes on.
fn wrap_under(
    context: &Context,
    installation: &Installation,
    args: &UpdateArgs,
) -> Result<(), CliError> {
    let (name, set) = (&args.name, args.disk_encryption_set.as_deref());
    let needs_other_dek = disks::needs_other_dek(installation, ResourceKind::Disk, name, set)?;
    let before = disks::show(installation, ResourceKind::Disk, name)?;
    // Any other rotation goes on by itself, and the key may have a newer version.
    let is_begun = needs_other_dek
        && before.encryption.disk_encryption_set_id.as_deref() == set
        && before
            .job
            .is_some_and(|job| job.job.kind == JobKind::Rotate);
    if !is_begun {
        disks::update(installation, ResourceKind::Disk, name, set)?;
    }
    if !needs_other_dek {
        return Ok(());
    }
    context.output.note(&format!(
        "note: the disk {name} gets a new DEK, and its data is copied under it, since its disk encryption set encrypts \
         another number of times; `sealdisk disk show {name}` shows how far it is"
    ));
    let op = match is_begun {
        true => LayerOp::Job {
            kind: Some(JobKind::Rotate),
            change: JobChange::Resume(None),
        },
        false => LayerOp::RotateDek { rate: None },
    };
    apply(context, name, &op, true).map(drop)
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
    args.limits.check()?;
    if wrap {
        wrap_under(context, &installation, &args)?;
    }
    let view = disks::show(&installation, ResourceKind::Disk, &args.name)?;
    if limit {
        let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
        set_limits(&runtime_dir, view.unique_id, &args.limits.limits())?;
    }
    show(context, view)
}
