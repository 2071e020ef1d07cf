//! `sealdisk disk create`: an empty disk, one of an image file, or a clone.

use std::path::PathBuf;

use clap::Args;

use super::layers::change;
use super::show::show_disk;
use crate::cli::frozen::absolute;
use crate::cli::progress::{Progress, cancel_on_signals};
use crate::cli::source::{Meant, source, source_note};
use crate::cli::{CliError, Context};
use disks::import::{ImageFormat, SourceSpec};
use disks::{CloneRequest, CreateRequest, LayerOp, parse_size};
use installation::catalog::Kind;
use installation::envelope::ResourceKind;

#[derive(Args)]
pub(super) struct CreateArgs {
    /// The disk's name: letters, digits, '_', '.' and '-', at most 80
    name: String,
    /// Its size: bytes, or a number with KiB, MiB, GiB or TiB (G means GiB) [default: the source's]
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    size: Option<u64>,
    /// The content: an image file, or a snapshot, image or disk of this installation
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,
    /// The image's format: raw, qcow2, vpc (vhd), vhdx, vmdk, vdi, qed or parallels [default: probed]
    #[arg(long, value_name = "FORMAT", requires = "source")]
    source_format: Option<ImageFormat>,
    /// Read the image file even though a running QEMU may write to it, as `qemu-img -U` does
    #[arg(long, requires = "source")]
    force_share: bool,
    /// The disk encryption set whose key protects the disk [default: that of the snapshot, image
    /// or disk, else the platform-managed key]
    #[arg(long, value_name = "NAME")]
    disk_encryption_set: Option<String>,
    /// Use the platform-managed key, whatever key the source uses
    #[arg(long, conflicts_with = "disk_encryption_set")]
    platform_managed: bool,
    /// Size of a data unit (encrypted under one tweak): 512 or 4096 [default: that of the snapshot,
    /// image or disk, else 4096]
    #[arg(long, value_name = "BYTES")]
    sector_size: Option<u32>,
    /// Logical sector size that the guest sees: 512, or 4096 for the image of a 4Kn disk, which boots
    /// through UEFI only [default: that of the snapshot, image or disk, else 512]
    #[arg(long, value_name = "BYTES")]
    logical_sector_size: Option<u32>,
    /// Keep the ciphertext in DIR/NAME instead of in the state directory
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub(super) fn create(context: &Context, args: CreateArgs) -> Result<(), CliError> {
    let kinds = [
        ResourceKind::Snapshot,
        ResourceKind::Image,
        ResourceKind::Disk,
    ];
    let meant = match &args.source {
        Some(text) => Some(source(context, text, &kinds)?),
        None => None,
    };
    match meant {
        Some(Meant::Resource(kind, name)) => create_clone(context, args, (kind, name)),
        Some(Meant::File(path)) => create_disk(context, args, Some(path)),
        None => create_disk(context, args, None),
    }
}

/// A disk of a snapshot, an image or a disk, at once.
fn create_clone(
    context: &Context,
    args: CreateArgs,
    source: (ResourceKind, String),
) -> Result<(), CliError> {
    if args.source_format.is_some() || args.force_share || args.logical_sector_size.is_some() {
        return Err(CliError::usage(
            "--source-format, --force-share and --logical-sector-size are for image files and empty disks",
        ));
    }
    let request = CloneRequest {
        name: args.name,
        source,
        size: args.size,
        disk_encryption_set: match (args.disk_encryption_set, args.platform_managed) {
            (None, false) => None,
            (set, _) => Some(set),
        },
        sector_size: args.sector_size,
        data_dir: absolute(args.data_dir)?,
    };
    let name = request.name.clone();
    match &request.source {
        (ResourceKind::Disk, source) => {
            let source = source.clone();
            change(context, &source, &LayerOp::CloneDisk(request))?;
        }
        _ => {
            let installation = context.installation()?;
            installation.catalog().forget_left(Kind::Disk, &name)?;
            disks::clone(&installation, &request)?;
        }
    }
    show_disk(context, &name)
}

fn create_disk(
    context: &Context,
    args: CreateArgs,
    image: Option<PathBuf>,
) -> Result<(), CliError> {
    let cancel = cancel_on_signals()?;
    let installation = context.installation()?;
    installation.catalog().forget_left(Kind::Disk, &args.name)?;
    let request = CreateRequest {
        name: args.name,
        size: args.size,
        source: image.map(|path| SourceSpec {
            path,
            format: args.source_format,
            force_share: args.force_share,
        }),
        disk_encryption_set: args.disk_encryption_set,
        sector_size: args.sector_size.unwrap_or(disks::DEFAULT_SECTOR_SIZE),
        logical_sector_size: args.logical_sector_size,
        data_dir: args.data_dir,
    };
    let progress = Progress::new();
    let result = disks::create(&installation, &request, &cancel, |created| {
        if let Some(note) = source_note(created, args.source_format.is_none()) {
            context.output.note(&note);
        }
        let shown = created.source.map(|(_, size)| progress.begin(size));
        move |done| shown.iter().for_each(|shown| shown(done))
    });
    drop(progress);
    result?;
    let view = disks::show(&installation, ResourceKind::Disk, &request.name)?;
    context.output.show(&view)
}
