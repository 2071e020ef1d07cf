//! `sealdisk image`: images for instant clones.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::disk::change;
use super::filter::FilterArgs;
use super::frozen::{DeleteArgs, UpdateArgs, absolute, delete, show, update};
use super::progress::{Progress, cancel_on_signals};
use super::source::{Meant, source, source_note};
use super::{CliError, Context};
use disks::import::{ImageFormat, SourceSpec};
use disks::{ImageRequest, LayerOp, SnapshotRequest};
use installation::envelope::ResourceKind;

/// Arguments of `image`.
#[derive(Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Subcommand)]
enum ImageCommand {
    /// Make an image for instant clones from a file, a disk or a snapshot
    #[command(after_help = "Examples:
  sealdisk image create debian --source debian.qcow2 --disk-encryption-set myset
  sealdisk image create golden --source boot1
  sealdisk image create golden2 --source snapshot:before-upgrade

A source without '/' is the snapshot or the disk of that name, if there is one; disk:NAME, snapshot:NAME
and ./FILE are unambiguous. An image of a disk or a snapshot shares its layers and has its disk
encryption set.")]
    Create(ImageCreateArgs),
    /// List the images
    #[command(after_help = "Examples:
  sealdisk image list
  sealdisk image list 'web-*' --key myvault/mykey -o json")]
    List(FilterArgs),
    /// Show an image: its size, space, layers and the key version that wraps it
    #[command(after_help = "Example:\n  sealdisk image show debian -o json")]
    Show {
        /// The image
        name: String,
    },
    /// Rewrap an image's DEKs under another key
    #[command(after_help = "Example:
  sealdisk image update debian --disk-encryption-set myset")]
    Update(UpdateArgs),
    /// Delete an image
    #[command(after_help = "Example:
  sealdisk image delete debian --yes

An image with clones cannot be deleted until they are flattened or deleted.")]
    Delete(DeleteArgs),
}

#[derive(Args)]
struct ImageCreateArgs {
    /// The image's name: letters, digits, '_', '.' and '-', at most 80
    name: String,
    /// A file, a disk or a snapshot
    #[arg(long, value_name = "SOURCE")]
    source: String,
    /// The file's format: raw, qcow2, vpc (vhd), vhdx, vmdk, vdi, qed or parallels [default: probed]
    #[arg(long, value_name = "FORMAT")]
    source_format: Option<ImageFormat>,
    /// Read the file even though a running QEMU may write to it, as `qemu-img -U` does
    #[arg(long)]
    force_share: bool,
    /// The disk encryption set of an image from a file [default: the platform-managed key]
    #[arg(long, value_name = "NAME")]
    disk_encryption_set: Option<String>,
    /// Size of a data unit (encrypted under one tweak), for a file: 512 or 4096
    #[arg(long, value_name = "BYTES", default_value_t = disks::DEFAULT_SECTOR_SIZE)]
    sector_size: u32,
    /// Logical sector size that guests see, for a file: 512 or 4096 [default: 512]
    #[arg(long, value_name = "BYTES")]
    logical_sector_size: Option<u32>,
    /// Keep it in DIR/NAME
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub(super) fn run(context: &Context, args: ImageArgs) -> Result<(), CliError> {
    let kind = ResourceKind::Image;
    match args.command {
        ImageCommand::Create(args) => create_image(context, args),
        ImageCommand::List(filter) => filter.list(context, kind),
        ImageCommand::Show { name } => show(context, kind, &name),
        ImageCommand::Update(args) => update(context, kind, &args),
        ImageCommand::Delete(args) => delete(context, kind, &args),
    }
}

fn create_image(context: &Context, args: ImageCreateArgs) -> Result<(), CliError> {
    let kind = ResourceKind::Image;
    let kinds = [ResourceKind::Disk, ResourceKind::Snapshot];
    let meant = source(context, &args.source, &kinds)?;
    if matches!(meant, Meant::Resource(..))
        && (args.disk_encryption_set.is_some()
            || args.source_format.is_some()
            || args.force_share
            || args.logical_sector_size.is_some())
    {
        return Err(CliError::usage(
            "an image of a disk or a snapshot has its disk encryption set, and no format: \
             --disk-encryption-set, --source-format, --force-share and --logical-sector-size are for \
             files (`image update` gives it another set)",
        ));
    }
    match meant {
        Meant::Resource(ResourceKind::Snapshot, snapshot) => {
            let installation = context.installation()?;
            installation
                .catalog()
                .forget_left(kind.into(), &args.name)?;
            disks::image_of_snapshot(&installation, &args.name, &snapshot, args.data_dir)?;
        }
        Meant::Resource(_, disk) => {
            let request = SnapshotRequest {
                kind,
                name: args.name.clone(),
                incremental: false,
                data_dir: absolute(args.data_dir)?,
            };
            change(context, &disk, &LayerOp::CreateSnapshot(request))?;
        }
        Meant::File(path) => {
            let cancel = cancel_on_signals()?;
            let installation = context.installation()?;
            installation
                .catalog()
                .forget_left(kind.into(), &args.name)?;
            let guessed = args.source_format.is_none();
            let request = ImageRequest {
                name: args.name.clone(),
                source: SourceSpec {
                    path,
                    format: args.source_format,
                    force_share: args.force_share,
                },
                disk_encryption_set: args.disk_encryption_set,
                sector_size: args.sector_size,
                logical_sector_size: args.logical_sector_size,
                data_dir: args.data_dir,
            };
            let progress = Progress::new();
            let result = disks::image_of_file(&installation, request, &cancel, |created| {
                if let Some(note) = source_note(created, guessed) {
                    context.output.note(&note);
                }
                progress.begin(created.size)
            });
            drop(progress);
            result?;
        }
    }
    show(context, kind, &args.name)
}
