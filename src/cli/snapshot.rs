//! `sealdisk snapshot`: what disks held at a moment.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::access::{self, GrantArgs};
use super::disk::change;
use super::filter::FilterArgs;
use super::frozen::{DeleteArgs, UpdateArgs, absolute, delete, show, update};
use super::{CliError, Context};
use disks::{LayerOp, SnapshotRequest};
use installation::envelope::ResourceKind;

/// Arguments of `snapshot`.
#[derive(Args)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Subcommand)]
enum SnapshotCommand {
    /// Create a snapshot of a disk, also while it is attached
    #[command(after_help = "Examples:
  sealdisk snapshot create before-upgrade --source boot1
  sealdisk snapshot create daily-17 --source data1 --incremental

This takes the same short time for any amount of data: the snapshot shares the disk's layers, and
the disk continues on a new layer with its own DEK. The snapshot has the disk encryption set of the
disk.")]
    Create(SnapshotCreateArgs),
    /// List the snapshots
    #[command(after_help = "Examples:
  sealdisk snapshot list
  sealdisk snapshot list 'web-*' --key myvault/mykey -o json")]
    List(FilterArgs),
    /// Show a snapshot: its size, space, layers and the key version that wraps it
    #[command(after_help = "Example:\n  sealdisk snapshot show before-upgrade -o json")]
    Show {
        /// The snapshot
        name: String,
    },
    /// Rewrap a snapshot's DEKs under another key
    #[command(after_help = "Example:
  sealdisk snapshot update before-upgrade --disk-encryption-set myset")]
    Update(UpdateArgs),
    /// Grant access to the data of a snapshot over HTTPS, for a limited time
    #[command(after_help = "Example:
  sealdisk snapshot grant-access before-upgrade --duration-in-seconds 3600

`sealdisk serve` serves the snapshot there as a fixed VHD. Whoever has the URL can read the snapshot
until the time is over or access is revoked; it is shown once.")]
    GrantAccess(GrantArgs),
    /// Revoke all access to the data of a snapshot
    #[command(after_help = "Example:
  sealdisk snapshot revoke-access before-upgrade

Downloads under way end within a second.")]
    RevokeAccess {
        /// The snapshot
        name: String,
    },
    /// Delete a snapshot, and merge its layer into the one above
    #[command(after_help = "Examples:
  sealdisk snapshot delete before-upgrade --yes
  sealdisk snapshot delete daily-17 --yes --wait

A snapshot with clones cannot be deleted until they are flattened or deleted. The merge also works
while the disk is attached.")]
    Delete(DeleteArgs),
}

#[derive(Args)]
struct SnapshotCreateArgs {
    /// The snapshot's name: letters, digits, '_', '.' and '-', at most 80
    name: String,
    /// The disk
    #[arg(long, value_name = "DISK")]
    source: String,
    /// Mark it as incremental, as in Azure: both kinds store only what changed
    #[arg(long)]
    incremental: bool,
    /// Keep it in DIR/NAME, which must be on the file system of the disk [default: beside the disk]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub(super) fn run(context: &Context, args: SnapshotArgs) -> Result<(), CliError> {
    let kind = ResourceKind::Snapshot;
    match args.command {
        SnapshotCommand::Create(args) => {
            let request = SnapshotRequest {
                kind,
                name: args.name.clone(),
                incremental: args.incremental,
                data_dir: absolute(args.data_dir)?,
            };
            change(context, &args.source, &LayerOp::CreateSnapshot(request))?;
            show(context, kind, &args.name)
        }
        SnapshotCommand::List(filter) => filter.list(context, kind),
        SnapshotCommand::Show { name } => show(context, kind, &name),
        SnapshotCommand::Update(args) => update(context, kind, &args),
        SnapshotCommand::GrantAccess(args) => access::grant(context, kind, &args),
        SnapshotCommand::RevokeAccess { name } => access::revoke(context, kind, &name),
        SnapshotCommand::Delete(args) => delete(context, kind, &args),
    }
}
