//! `sealdisk snapshot`: what disks held at a moment.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::disk::change;
use super::frozen::{DeleteArgs, UpdateArgs, absolute, delete, list, show, update};
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
    /// Keep what a disk holds now, also while it is attached
    #[command(after_help = "Examples:
  sealdisk snapshot create before-upgrade --source boot1
  sealdisk snapshot create daily-17 --source data1 --incremental

It takes the same short time whatever the disk holds: the snapshot shares the disk's layers, and the
disk goes on with a new one that has a key of its own. It is under the disk encryption set of the disk.")]
    Create(SnapshotCreateArgs),
    /// List the snapshots
    #[command(after_help = "Example:\n  sealdisk snapshot list -o json")]
    List,
    /// Show a snapshot: its size, space, layers and the key version that wraps it
    #[command(after_help = "Example:\n  sealdisk snapshot show before-upgrade -o json")]
    Show {
        /// The snapshot
        name: String,
    },
    /// Wrap a snapshot's key under another vault key
    #[command(after_help = "Example:
  sealdisk snapshot update before-upgrade --disk-encryption-set myset")]
    Update(UpdateArgs),
    /// Delete a snapshot; what only it needed is merged into the layer above it
    #[command(after_help = "Example:
  sealdisk snapshot delete before-upgrade --yes

A snapshot that disks were made of is not deleted before these are flattened or deleted. Its layer is
merged while the disk is in use, if it is.")]
    Delete(DeleteArgs),
}

#[derive(Args)]
struct SnapshotCreateArgs {
    /// The snapshot's name: letters, digits, '_', '.' and '-', at most 80
    name: String,
    /// The disk
    #[arg(long, value_name = "DISK")]
    source: String,
    /// Note that it is an incremental snapshot, as Azure does: either kind has only what changed
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
        SnapshotCommand::List => list(context, kind),
        SnapshotCommand::Show { name } => show(context, kind, &name),
        SnapshotCommand::Update(args) => update(context, kind, &args),
        SnapshotCommand::Delete(args) => delete(context, kind, &args),
    }
}
