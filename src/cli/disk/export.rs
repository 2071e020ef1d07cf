//! Plaintext of disks, snapshots and images: `sealdisk disk decrypt` and `export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::progress::{Progress, cancel_on_signals};
use crate::cli::{CliError, Context};
use disks::import::ImageFormat;
use disks::{ExportRequest, Plaintext, Since};
use installation::envelope::ResourceKind;
use installation::runtime_dir;

#[derive(Args)]
pub(super) struct DecryptArgs {
    /// The disk, or snapshot:NAME or image:NAME
    #[arg(value_name = "DISK")]
    name: String,
    /// The file to create, or an existing device or pipe; '-' is stdout
    #[arg(long, value_name = "FILE", default_value = "-")]
    output_file: PathBuf,
}

#[derive(Args)]
pub(super) struct ExportArgs {
    /// The disk, or snapshot:NAME or image:NAME
    #[arg(value_name = "DISK")]
    name: String,
    /// The file to create
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// The image's format
    #[arg(long, value_enum)]
    format: ExportFormat,
    /// Only what changed since the snapshot --base
    #[arg(long, requires = "base")]
    incremental: bool,
    /// The snapshot
    #[arg(long, value_name = "SNAPSHOT", requires = "incremental")]
    base: Option<String>,
    /// The full image of the snapshot, relative to the directory of the new file: raw if it ends in
    /// .raw, else qcow2 [default: SNAPSHOT.qcow2]
    #[arg(long, value_name = "FILE", requires = "incremental")]
    backing: Option<PathBuf>,
}

/// What an export can be.
#[derive(Clone, Copy, ValueEnum)]
enum ExportFormat {
    Raw,
    Qcow2,
    Vhd,
}

impl From<ExportFormat> for ImageFormat {
    fn from(format: ExportFormat) -> Self {
        match format {
            ExportFormat::Raw => Self::Raw,
            ExportFormat::Qcow2 => Self::Qcow2,
            ExportFormat::Vhd => Self::Vpc,
        }
    }
}

/// What is to be read: a disk, unless its name says that it is something else.
fn readable(name: &str) -> (ResourceKind, &str) {
    let of = |kind: ResourceKind| name.strip_prefix(kind.as_str())?.strip_prefix(':');
    for kind in [ResourceKind::Snapshot, ResourceKind::Image] {
        if let Some(name) = of(kind) {
            return (kind, name);
        }
    }
    (ResourceKind::Disk, name)
}

pub(super) fn decrypt(context: &Context, args: DecryptArgs) -> Result<(), CliError> {
    let cancel = cancel_on_signals()?;
    let installation = context.installation()?;
    let to = if args.output_file.as_os_str() == "-" {
        Plaintext::Stdout
    } else {
        Plaintext::Path(args.output_file)
    };
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let progress = Progress::new();
    Ok(disks::decrypt(
        &installation,
        readable(&args.name),
        &to,
        &runtime_dir,
        &cancel,
        |size| progress.begin(size),
    )?)
}

pub(super) fn export(context: &Context, args: ExportArgs) -> Result<(), CliError> {
    let cancel = cancel_on_signals()?;
    let installation = context.installation()?;
    let (kind, name) = readable(&args.name);
    let request = ExportRequest {
        source: (kind, name.into()),
        file: args.file,
        format: args.format.into(),
        since: args.base.map(|snapshot| Since {
            snapshot,
            backing: args.backing,
        }),
    };
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let progress = Progress::new();
    let started = |size| progress.begin(size);
    Ok(disks::export(
        &installation,
        &request,
        &runtime_dir,
        &cancel,
        started,
    )?)
}
