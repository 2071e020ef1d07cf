//! `sealdisk disk`.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::disk_create::{CreateArgs, create};
use super::disk_layers::{self, JobArgs, RevertArgs};
use super::limits::LimitArgs;
use super::{CliError, Context, Tabular};
use attach::{self, KeyStatus, Offered, set_limits};
use disks::import::{Cancel, ImageFormat};
use disks::{
    self, DiskView, ExportRequest, LayerOp, Plaintext, ProblemKind, RegisterRequest, Since,
    Unflushed, parse_size,
};
use installation::envelope::{JobKind, ResourceKind};
use installation::runtime_dir;

/// Arguments of `disk`.
#[derive(Args)]
pub struct DiskArgs {
    #[command(subcommand)]
    command: DiskCommand,
}

#[derive(Subcommand)]
enum DiskCommand {
    /// Make an encrypted disk, empty or from an image
    #[command(after_help = "Examples:
  sealdisk disk create data1 --size 10GiB --disk-encryption-set myset
  sealdisk disk create boot1 --source debian.qcow2 --size 20GiB
  sealdisk disk create clone1 --source before-upgrade

A source without '/' that a snapshot or an image of this installation has as its name is that one;
snapshot:NAME, image:NAME and ./FILE say which is meant. Such a disk is there at once: it shares what
it is made of, which stays under the key that it has, until `disk flatten` makes the disk independent.

An image file is streamed: no plaintext is written anywhere. Its format is what --source-format says,
else what its extension (.raw, .qcow2, .vhd, .vhdx, .vmdk) says and its content does not contradict,
else what its first bytes say. An image that refers to other files (backing files, flat extents) is
refused. Reading anything but raw images needs the package qemu-utils.")]
    Create(CreateArgs),
    /// List the disks
    #[command(after_help = "Example:\n  sealdisk disk list -o json")]
    List,
    /// Show a disk: its state, size, files, the key version that wraps it, and, while it is attached,
    /// whether the vault grants that key
    #[command(after_help = "Example:\n  sealdisk disk show boot1 -o json")]
    Show {
        /// The disk
        name: String,
    },
    /// Print what happens to an attached disk and its key, a line of JSON for each event
    #[command(after_help = "Examples:
  sealdisk disk events boot1
  sealdisk disk events boot1 --follow | jq -r 'select(.event == \"KeyRevoked\") | .reason.message'

Events: Attached, Detached, KeyUnreachable, KeyReachable, KeyRevoked, DekDestroyed, KeyRestored,
KeyNotRestored, KeyChanged, StorageFull, StorageOk, SyncFailed, MemoryNotShared. docs/key-vault.md says
when each comes.")]
    Events {
        /// The disk
        name: String,
        /// Go on with those to come, until the disk is detached
        #[arg(long, short)]
        follow: bool,
    },
    /// Make a disk larger, also while it is attached
    #[command(after_help = "Example:
  sealdisk disk resize boot1 --size 40GiB

A guest under QEMU sees the new size at once (`dmesg` tells); others see it when they start again or
connect anew. Growing partitions and file systems is the guest's own work. A disk is not made smaller.")]
    Resize {
        /// The disk
        name: String,
        /// Its new size: bytes, or a number with KiB, MiB, GiB or TiB (G means GiB)
        #[arg(long, value_parser = parse_size, value_name = "SIZE")]
        size: u64,
    },
    /// Give an unattached disk what one of its snapshots holds
    #[command(after_help = "Example:
  sealdisk disk revert boot1 --snapshot before-upgrade

The disk keeps its size and its other snapshots. What it held since is destroyed.")]
    Revert(RevertArgs),
    /// Make a disk independent of the image, snapshot and layers beneath it, also while it is attached
    #[command(after_help = "Examples:
  sealdisk disk flatten clone1 --rate 100MiB
  sealdisk disk flatten clone1 --pause

Of an attached disk it goes on in the background (`disk show` tells how far it is); of one that nobody
uses it is done when the command returns. What is interrupted goes on with --resume or the next attach.")]
    Flatten(JobArgs),
    /// Give a disk a new data encryption key, also while it is attached
    #[command(after_help = "Examples:
  sealdisk disk rotate-dek boot1
  sealdisk disk rotate-dek boot1 --pause
  sealdisk disk rotate-dek boot1 --resume --rate 200MiB
  sealdisk disk rotate-dek boot1 --abort

All data is encrypted anew under the new key; then the old key is destroyed, and the old ciphertext given
back. Of an attached disk it goes on in the background (`disk show` tells the generation and how far it
is). It survives a kill and a power loss. --abort keeps both keys; the next rotate-dek replaces both.
What snapshots hold stays under the keys that they have.")]
    RotateDek(JobArgs),
    /// Delete a disk: its wrapped key is overwritten first, then its files are removed
    #[command(after_help = "Example:\n  sealdisk disk delete boot1 --yes")]
    Delete {
        /// The disk
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Wrap a disk's key under another vault key, or change its limits, also while it is attached
    #[command(
        group(ArgGroup::new("key")),
        after_help = "Examples:
  sealdisk disk update boot1 --disk-encryption-set myset
  sealdisk disk update boot1 --platform-managed
  sealdisk disk update boot1 --iops 5000 --bandwidth 200MiB

Wrapping touches no data. Limits are those of the attached disk and end with it."
    )]
    Update(UpdateArgs),
    /// Write the plaintext of a disk, a snapshot or an image to a file or a pipe
    #[command(after_help = "Examples:
  sealdisk disk decrypt boot1 --output-file boot1.raw
  sealdisk disk decrypt snapshot:before-upgrade | sha256sum")]
    Decrypt(DecryptArgs),
    /// Write the plaintext of an unattached disk, a snapshot or an image to a new image file for other
    /// programs
    #[command(after_help = "Examples:
  sealdisk disk export boot1 --file boot1.qcow2 --format qcow2
  sealdisk disk export boot1 --file boot1.vhd --format vhd
  sealdisk disk export snapshot:monday --file monday.qcow2 --format qcow2
  sealdisk disk export boot1 --file tuesday.qcow2 --format qcow2 --incremental --base monday

The image is sparse and appears when it is complete; plaintext is written nowhere else. A VHD is a fixed
one of exactly the disk's size, as Azure takes it when that is whole MiB. Anything but raw needs the
package qemu-utils. An incremental export has the 64 KiB clusters in which something changed since the
snapshot, and lies on a full export of the snapshot, in the same directory unless --backing says
otherwise.")]
    Export(ExportArgs),
    /// Check the files of an unattached disk: header, map, data and space
    #[command(after_help = "Examples:
  sealdisk disk check boot1
  sealdisk disk check boot1 --repair -o json

Exit status, as qemu-img check has it: 0 nothing is wrong, or only what the next attach puts away; 1 the check could not be made; 2 there is
damage; 3 there are only leaks, which is space in use for nothing. After --repair it speaks of what
remains.

--repair does only what is safe without a doubt: it writes a torn header copy anew from the other one,
gives leaked space back, removes files of layers that were dropped or never used, and makes durable what a
killed daemon had completed, so it has to be given the
--runtime-dir that the disk was attached with. Where the runtime map that had it is lost, it needs
--discard-unflushed. After a sync has failed it reads all data anew and makes durable what there is; what the
guest wrote shortly before may be lost: run fsck in the guest. The report names the ranges that were written for
the first time since the last flush. Where the data file has holes there, they are lost; the repair
names these (`lostRanges`), and they read as before they were written. Where it cannot be read
(`unreadableRanges`) nothing is repaired: mend the storage, or give them up with --discard-unflushed. Others
that are lost cannot be told: they read as random bytes, or, where something was written over, as before.

Whether content was altered cannot be seen: XTS does not authenticate it.")]
    Check {
        /// The disk
        name: String,
        /// Repair what is safe to repair
        #[arg(long)]
        repair: bool,
        /// Go on without what was completed and not flushed, when the runtime map that has it is lost, or where the
        /// data file cannot be read
        #[arg(long, requires = "repair")]
        discard_unflushed: bool,
    },
    /// Copy an unattached disk as it is: ciphertext, map and header
    #[command(after_help = "Example:
  sealdisk disk copy boot1 --to /mnt/backup/boot1

No key is needed, unless a killed daemon left something to be made durable. `disk register` makes the copy known to another installation, which needs access to
the key vault that has the disk's key; `disk update --disk-encryption-set` puts it under such a key.")]
    Copy {
        /// The disk
        name: String,
        /// The directory to make
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// Make a disk known that was copied from another installation; its files stay where they are
    #[command(after_help = "Examples:
  sealdisk disk register --dir /mnt/backup/boot1
  sealdisk disk register --dir /mnt/backup/boot1 --name boot2 --disk-encryption-set theirset

The key that wraps the disk must be reachable under the same URL, through a disk encryption set of this
installation that may use it. A copy is the same disk as its original: an installation knows one of
them. `disk delete` deletes the files of a registered disk as of any other.")]
    Register {
        /// The directory of the disk's header
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The disk's name here [default: the one in its header]
        #[arg(long)]
        name: Option<String>,
        /// The disk encryption set here that may use its key [default: the one that its header names]
        #[arg(long, value_name = "NAME")]
        disk_encryption_set: Option<String>,
    },
    /// Forget an unattached disk; its files, its header and its key stay what they are
    #[command(after_help = "Examples:
  sealdisk disk unregister boot1
  sealdisk disk register --dir /mnt/backup/boot1

The disk can be registered again, here or elsewhere, from the directory that the command names. What a
killed daemon had completed is made durable first, so give the --runtime-dir that the disk was attached
with. Nothing here knows that the disk still needs its key: keep its key, and its disk encryption set or
another one that may use the key.")]
    Unregister {
        /// The disk
        name: String,
    },
}

#[derive(Args)]
struct ExportArgs {
    /// The disk, or snapshot:NAME or image:NAME
    #[arg(value_name = "DISK")]
    name: String,
    /// The file to make
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
    /// The full image of the snapshot, as it is to be found from the new file's directory: raw if it ends
    /// in .raw, else qcow2 [default: SNAPSHOT.qcow2]
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

#[derive(Args)]
struct UpdateArgs {
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
    /// Take every limit of the attached disk back
    #[arg(long, conflicts_with = "limits")]
    no_limits: bool,
}

#[derive(Args)]
struct DecryptArgs {
    /// The disk, or snapshot:NAME or image:NAME
    #[arg(value_name = "DISK")]
    name: String,
    /// The file to make, or an existing device or pipe; '-' is stdout
    #[arg(long, value_name = "FILE", default_value = "-")]
    output_file: PathBuf,
}

/// A disk, and the key of its attach.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AttachedDiskView {
    #[serde(flatten)]
    disk: DiskView,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_access: Option<KeyStatus>,
    /// What the attach has of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    serving: Option<Offered>,
}

impl Tabular for DiskView {
    const COLUMNS: &'static [&'static str] = &[
        "name",
        "diskState",
        "diskSizeBytes",
        "usedBytes",
        "dataBytes",
        "diskEncryptionSetId",
        "keyUrl",
    ];

    fn cells(&self) -> Vec<String> {
        let set = self.encryption.disk_encryption_set_id.as_deref();
        vec![
            self.name.clone(),
            self.disk_state.into(),
            self.disk_size_bytes.to_string(),
            self.used_bytes.to_string(),
            self.data_bytes
                .map_or("-".into(), |bytes| bytes.to_string()),
            set.unwrap_or("-").into(),
            self.encryption.key_url.clone(),
        ]
    }
}

pub(super) fn run(context: &Context, args: DiskArgs) -> Result<(), CliError> {
    match args.command {
        DiskCommand::Create(args) => create(context, args),
        DiskCommand::List => {
            let views = disks::list(&context.installation()?, ResourceKind::Disk)?;
            context.output.list(&views)
        }
        DiskCommand::Show { name } => {
            let disk = disks::show(&context.installation()?, ResourceKind::Disk, &name)?;
            show(context, disk)
        }
        DiskCommand::Events { name, follow } => {
            let disk = disks::show(&context.installation()?, ResourceKind::Disk, &name)?;
            let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
            let print = |line: &str| context.output.line(line);
            Ok(attach::events(&runtime_dir, disk.unique_id, follow, print)?)
        }
        DiskCommand::Delete { name, yes } => {
            let installation = context.installation()?;
            // A name that does not exist is said before anything is asked.
            disks::show(&installation, ResourceKind::Disk, &name)?;
            let question = format!("The disk {name} and all its data will be destroyed. Continue?");
            context.output.confirm(&question, yes)?;
            let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
            Ok(disks::delete(
                &installation,
                ResourceKind::Disk,
                &name,
                &runtime_dir,
            )?)
        }
        DiskCommand::Resize { name, size } => {
            disk_layers::change(context, &name, &LayerOp::Grow { size })?;
            show_disk(context, &name)
        }
        DiskCommand::Revert(args) => disk_layers::revert(context, &args),
        DiskCommand::Flatten(args) => disk_layers::job(context, JobKind::Flatten, &args),
        DiskCommand::RotateDek(args) => disk_layers::job(context, JobKind::Rotate, &args),
        DiskCommand::Update(args) => update(context, args),
        DiskCommand::Decrypt(args) => decrypt(context, args),
        DiskCommand::Export(args) => export(context, args),
        DiskCommand::Check {
            name,
            repair,
            discard_unflushed,
        } => check(context, &name, (repair, discard_unflushed)),
        DiskCommand::Copy { name, to } => copy(context, &name, &to),
        DiskCommand::Register {
            dir,
            name,
            disk_encryption_set,
        } => {
            let installation = context.installation()?;
            let request = RegisterRequest {
                directory: dir,
                name,
                disk_encryption_set,
            };
            let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
            let name = disks::register(&installation, &request, &runtime_dir)?;
            show(
                context,
                disks::show(&installation, ResourceKind::Disk, &name)?,
            )
        }
        DiskCommand::Unregister { name } => {
            let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
            let directory = disks::unregister(&context.installation()?, &name, &runtime_dir)?;
            context.output.note(&format!(
                "the disk {name} is not known here any more; its files stay in {}",
                directory.display()
            ));
            Ok(())
        }
    }
}

fn update(context: &Context, args: UpdateArgs) -> Result<(), CliError> {
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
    }
    let view = disks::show(&installation, ResourceKind::Disk, &args.name)?;
    if limit {
        let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
        set_limits(&runtime_dir, view.unique_id, &args.limits.limits())?;
    }
    show(context, view)
}

/// Prints a disk with what its attach knows of its key, if there is one and it answers.
fn show(context: &Context, mut disk: DiskView) -> Result<(), CliError> {
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let mut key_access = match disk.disk_state {
        "Attached" | "SyncFailed" => attach::key_status(&runtime_dir, disk.unique_id).ok(),
        _ => None,
    };
    let running = key_access.as_ref().and_then(|key| key.job.as_ref());
    if let (Some(job), Some(running)) = (&mut disk.job, running.filter(|job| job.bytes_total > 0)) {
        job.bytes_done = Some(running.bytes_done);
        job.bytes_total = Some(running.bytes_total);
    }
    let serving = key_access.as_mut().and_then(|key| key.offered.take());
    context.output.show(&AttachedDiskView {
        disk,
        key_access,
        serving,
    })
}

pub(super) fn show_disk(context: &Context, name: &str) -> Result<(), CliError> {
    show(
        context,
        disks::show(&context.installation()?, ResourceKind::Disk, name)?,
    )
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

fn decrypt(context: &Context, args: DecryptArgs) -> Result<(), CliError> {
    let cancel = cancel_on_signals()?;
    let installation = context.installation()?;
    let to = if args.output_file.as_os_str() == "-" {
        Plaintext::Stdout
    } else {
        Plaintext::Path(args.output_file)
    };
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let bar = ProgressBar::hidden();
    let result = disks::decrypt(
        &installation,
        readable(&args.name),
        &to,
        &runtime_dir,
        &cancel,
        |size| {
            show_bar(&bar, size);
            |done| bar.set_position(done)
        },
    );
    bar.finish_and_clear();
    Ok(result?)
}

fn export(context: &Context, args: ExportArgs) -> Result<(), CliError> {
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
    let bar = ProgressBar::hidden();
    let started = |size| {
        show_bar(&bar, size);
        |done| bar.set_position(done)
    };
    let result = disks::export(&installation, &request, &runtime_dir, &cancel, started);
    bar.finish_and_clear();
    Ok(result?)
}

/// Prints what was found; the exit status says how grave it is.
fn check(
    context: &Context,
    name: &str,
    (repair, discard_unflushed): (bool, bool),
) -> Result<(), CliError> {
    let installation = context.installation()?;
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let unflushed = match discard_unflushed {
        true => Unflushed::GivenUp,
        false => Unflushed::Needed,
    };
    let report = disks::check(&installation, name, repair, (&runtime_dir, unflushed))?;
    context.output.show(&report)?;
    let (damage, leaks) = (
        report.remaining(ProblemKind::Damage),
        report.remaining(ProblemKind::Leak),
    );
    match (damage, leaks) {
        (0, 0) => Ok(()),
        (0, _) => Err(CliError {
            code: "DiskLeaks".into(),
            message: format!("the disk {name} has {leaks} leaks; --repair gives space back"),
            status: 3,
        }),
        _ => Err(CliError {
            code: "DiskDamaged".into(),
            message: format!(
                "the disk {name} is damaged in {damage} ways; the report on stdout names them"
            ),
            status: 2,
        }),
    }
}

fn copy(context: &Context, name: &str, to: &Path) -> Result<(), CliError> {
    let cancel = cancel_on_signals()?;
    let installation = context.installation()?;
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let bar = ProgressBar::hidden();
    let started = |size| {
        show_bar(&bar, size);
        |done| bar.set_position(done)
    };
    let result = disks::copy(&installation, name, to, &runtime_dir, &cancel, started);
    bar.finish_and_clear();
    Ok(result?)
}

/// Shows a progress bar on stderr, if that is a terminal.
pub(super) fn show_bar(bar: &ProgressBar, size: u64) {
    let template = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_length(size);
    bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
}

pub(super) fn cancel_on_signals() -> Result<Cancel, CliError> {
    Cancel::on_signals()
        .map_err(|e| CliError::new("InternalError", format!("cannot watch for signals: {e}")))
}
