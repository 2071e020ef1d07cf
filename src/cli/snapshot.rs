//! `sealdisk snapshot` and `sealdisk image`: what disks held at a moment, and what disks are made of.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use indicatif::ProgressBar;

use super::disk::{cancel_on_signals, show_bar};
use super::disk_create::source_note;
use super::disk_layers;
use super::{CliError, Context};
use disks::import::{ImageFormat, SourceSpec};
use disks::{self, ImageRequest, LayerOp, SnapshotRequest, delete_source};
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

#[derive(Args)]
struct UpdateArgs {
    /// Its name
    name: String,
    /// Wrap under the active key of this disk encryption set
    #[arg(
        long,
        value_name = "NAME",
        required_unless_present = "platform_managed"
    )]
    disk_encryption_set: Option<String>,
    /// Wrap under the platform-managed key
    #[arg(long, conflicts_with = "disk_encryption_set")]
    platform_managed: bool,
}

#[derive(Args)]
struct DeleteArgs {
    /// Its name
    name: String,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Leave what can be merged to the next deletion of a snapshot
    #[arg(long)]
    no_wait: bool,
}

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
and ./FILE say which is meant. An image of a disk or a snapshot shares its layers and is under its disk
encryption set.")]
    Create(ImageCreateArgs),
    /// List the images
    #[command(after_help = "Example:\n  sealdisk image list -o json")]
    List,
    /// Show an image: its size, space, layers and the key version that wraps it
    #[command(after_help = "Example:\n  sealdisk image show debian -o json")]
    Show {
        /// The image
        name: String,
    },
    /// Wrap an image's key under another vault key
    #[command(after_help = "Example:
  sealdisk image update debian --disk-encryption-set myset")]
    Update(UpdateArgs),
    /// Delete an image
    #[command(after_help = "Example:
  sealdisk image delete debian --yes

An image that disks were made of is not deleted before these are flattened or deleted.")]
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
    /// The disk encryption set whose key protects what is read from a file [default: the
    /// platform-managed key]
    #[arg(long, value_name = "NAME")]
    disk_encryption_set: Option<String>,
    /// Bytes that are encrypted under one tweak, of what is read from a file: 512 or 4096
    #[arg(long, value_name = "BYTES", default_value_t = disks::DEFAULT_SECTOR_SIZE)]
    sector_size: u32,
    /// The logical sectors that guests see, of what is read from a file: 512 or 4096 [default: 512]
    #[arg(long, value_name = "BYTES")]
    logical_sector_size: Option<u32>,
    /// Keep it in DIR/NAME
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub(super) fn run_snapshot(context: &Context, args: SnapshotArgs) -> Result<(), CliError> {
    let kind = ResourceKind::Snapshot;
    match args.command {
        SnapshotCommand::Create(args) => {
            let request = SnapshotRequest {
                kind,
                name: args.name.clone(),
                incremental: args.incremental,
                data_dir: absolute(args.data_dir)?,
            };
            disk_layers::change(context, &args.source, &LayerOp::CreateSnapshot(request))?;
            show(context, kind, &args.name)
        }
        SnapshotCommand::List => list(context, kind),
        SnapshotCommand::Show { name } => show(context, kind, &name),
        SnapshotCommand::Update(args) => update(context, kind, &args),
        SnapshotCommand::Delete(args) => delete(context, kind, &args),
    }
}

pub(super) fn run_image(context: &Context, args: ImageArgs) -> Result<(), CliError> {
    let kind = ResourceKind::Image;
    match args.command {
        ImageCommand::Create(args) => create_image(context, args),
        ImageCommand::List => list(context, kind),
        ImageCommand::Show { name } => show(context, kind, &name),
        ImageCommand::Update(args) => update(context, kind, &args),
        ImageCommand::Delete(args) => delete(context, kind, &args),
    }
}

/// What is meant by a source.
pub(super) enum Meant {
    File(PathBuf),
    Resource(ResourceKind, String),
}

/// Finds out what a source is that may be the name of something of these `kinds`, or a file.
pub(super) fn source(
    context: &Context,
    source: &str,
    kinds: &[ResourceKind],
) -> Result<Meant, CliError> {
    for kind in kinds {
        let prefix = format!("{kind}:");
        if let Some(name) = source.strip_prefix(&prefix) {
            return Ok(Meant::Resource(*kind, name.into()));
        }
    }
    if source.contains('/') {
        return Ok(Meant::File(source.into()));
    }
    let known = disks::resources_named(&context.installation()?, source)?;
    let mut named = kinds.iter().filter(|kind| known.contains(kind));
    let is_file = PathBuf::from(source).exists();
    match (named.next(), named.next(), is_file) {
        (Some(kind), None, false) => Ok(Meant::Resource(*kind, source.into())),
        (None, _, _) => Ok(Meant::File(source.into())),
        (Some(kind), other, _) => {
            let or = other.map_or("./".to_owned(), |other| format!("{other}:"));
            Err(CliError::usage(format!(
                "'{source}' is not clear: say {kind}:{source} or {or}{source}"
            )))
        }
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
            "an image of a disk or a snapshot is under the set of that, and has no format: \
             --disk-encryption-set, --source-format, --force-share and --logical-sector-size are for \
             files (`image update` gives it another set)",
        ));
    }
    match meant {
        Meant::Resource(ResourceKind::Snapshot, snapshot) => {
            let installation = context.installation()?;
            disks::image_of_snapshot(&installation, &args.name, &snapshot, args.data_dir)?;
        }
        Meant::Resource(_, disk) => {
            let request = SnapshotRequest {
                kind,
                name: args.name.clone(),
                incremental: false,
                data_dir: absolute(args.data_dir)?,
            };
            disk_layers::change(context, &disk, &LayerOp::CreateSnapshot(request))?;
        }
        Meant::File(path) => {
            let cancel = cancel_on_signals()?;
            let installation = context.installation()?;
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
            let bar = ProgressBar::hidden();
            let result = disks::image_of_file(&installation, request, &cancel, |created| {
                if let Some(note) = source_note(created, guessed) {
                    context.output.note(&note);
                }
                show_bar(&bar, created.size);
                |done| bar.set_position(done)
            });
            bar.finish_and_clear();
            result?;
        }
    }
    show(context, kind, &args.name)
}

/// The process that has the disk attached may be in another directory.
fn absolute(dir: Option<PathBuf>) -> Result<Option<PathBuf>, CliError> {
    dir.map(std::path::absolute)
        .transpose()
        .map_err(|e| CliError::new("FileSystem", format!("cannot find --data-dir: {e}")))
}

fn list(context: &Context, kind: ResourceKind) -> Result<(), CliError> {
    let views = disks::list(&context.installation()?, kind)?;
    context.output.list(&views)
}

fn show(context: &Context, kind: ResourceKind, name: &str) -> Result<(), CliError> {
    let view = disks::show(&context.installation()?, kind, name)?;
    context.output.show(&view)
}

fn update(context: &Context, kind: ResourceKind, args: &UpdateArgs) -> Result<(), CliError> {
    let set = args.disk_encryption_set.as_deref();
    disks::update(&context.installation()?, kind, &args.name, set)?;
    show(context, kind, &args.name)
}

fn delete(context: &Context, kind: ResourceKind, args: &DeleteArgs) -> Result<(), CliError> {
    disk_layers::with_changes(context, true, |changes| {
        // A name that does not exist is said before anything is asked.
        disks::show(changes.installation, kind, &args.name)?;
        let question = format!("The {kind} {} will be destroyed. Continue?", args.name);
        context.output.confirm(&question, args.yes)?;
        delete_source(changes.installation, kind, &args.name, changes.runtime_dir)?;
        if args.no_wait {
            return Ok(());
        }
        let bar = ProgressBar::hidden();
        let merged = changes.merge_all(&mut |done, total| {
            if bar.is_hidden() {
                show_bar(&bar, total);
            }
            bar.set_position(done);
        });
        bar.finish_and_clear();
        if let Err(error) = merged {
            // It is deleted; the rest is done by the next deletion.
            context.output.note(&format!(
                "note: the {kind} {} is deleted, but layers that can be merged are not yet: {error}",
                args.name
            ));
        }
        Ok(())
    })
}
