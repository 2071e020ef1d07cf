//! The subcommands of `disk`.

use clap::{ArgGroup, Args, Subcommand};

use super::check::{CheckArgs, check};
use super::create::{CreateArgs, create};
use super::export::{DecryptArgs, ExportArgs, decrypt, export};
use super::layers::{self, JobArgs, RevertArgs};
use super::moving::{CopyArgs, RegisterArgs, copy, register, unregister};
use super::show::{events, show_disk};
use super::takeover::{TakeoverArgs, takeover};
use super::update::{UpdateArgs, update};
use super::wait::wait;
use crate::cli::access::{self, GrantArgs};
use crate::cli::filter::DiskFilterArgs;
use crate::cli::frozen::merge_left;
use crate::cli::{CliError, Context};
use disks::{LayerOp, parse_size};
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
    /// Create an encrypted disk: empty, from an image file, or as a clone
    #[command(after_help = "Examples:
  sealdisk disk create data1 --size 10GiB --disk-encryption-set myset
  sealdisk disk create boot1 --source debian.qcow2 --size 20GiB
  sealdisk disk create clone1 --source before-upgrade
  sealdisk disk create boot2 --source disk:boot1

A source without '/' is the snapshot, image or disk of that name, if there is one; snapshot:NAME,
image:NAME, disk:NAME and ./FILE are unambiguous. A clone is instant: it shares the layers of its
source, which stay under their own keys, until `disk flatten` makes the disk independent. A disk may
be attached: its clone has what the guest had written at that moment, as after a power loss.

An image file is streamed: no plaintext is written to disk. Its format is --source-format, else that
of its extension (.raw, .qcow2, .vhd, .vhdx, .vmdk) unless the content contradicts it, else probed
from its first bytes. Images that refer to other files (backing files, flat extents) are refused.
Formats other than raw need the package qemu-utils.")]
    Create(CreateArgs),
    /// List the disks
    #[command(after_help = "Examples:
  sealdisk disk list
  sealdisk disk list 'web-*' --attached
  sealdisk disk list --key myvault/mykey --state Dirty,SyncFailed
  sealdisk disk list --query '[?usedBytes > `1073741824`].name' -o tsv")]
    List(DiskFilterArgs),
    /// Show a disk: its state, size, files, the key version that wraps it, and, while it is attached,
    /// whether the vault grants that key
    #[command(after_help = "Example:\n  sealdisk disk show boot1 -o json")]
    Show {
        /// The disk
        name: String,
    },
    /// Print the events of an attached disk and its key, one JSON object per line
    #[command(after_help = "Examples:
  sealdisk disk events boot1
  sealdisk disk events boot1 --query '[time, event]' -o tsv
  sealdisk disk events boot1 --follow | jq -r 'select(.event == \"KeyRevoked\") | .reason.message'

A --query is made of each event by itself. Events: Attached, Waiting, LockTaken, LockReleased,
RingRefused, Detached, KeyUnreachable, KeyReachable, KeyRevoked, DekDestroyed, KeyRestored,
KeyNotRestored, KeyChanged, StorageFull, StorageOk, SyncFailed, MemoryNotShared, LauncherEnded,
DataPlaneRestarted, DataPlaneUpgraded, AttachProcessUpgraded, UpgradeFailed, TakenOver,
AuditSpaceLow, AuditSpaceOk, AlarmRaised, AlarmCleared. docs/key-vault.md and docs/alarms.md explain them.")]
    Events {
        /// The disk
        name: String,
        /// Print new events until the disk is detached
        #[arg(long, short)]
        follow: bool,
    },
    /// Grow a disk, also while it is attached
    #[command(after_help = "Example:
  sealdisk disk resize boot1 --size 40GiB

A guest under QEMU sees the new size at once (see `dmesg`), under other VMMs after a restart or a
reconnect. Grow partitions and file systems in the guest. A disk cannot shrink.")]
    Resize {
        /// The disk
        name: String,
        /// Its new size: bytes, or a number with KiB, MiB, GiB or TiB (G means GiB)
        #[arg(long, value_parser = parse_size, value_name = "SIZE")]
        size: u64,
    },
    /// Revert an unattached disk to one of its snapshots
    #[command(after_help = "Example:
  sealdisk disk revert boot1 --snapshot before-upgrade

The disk keeps its size and its other snapshots. What was written since is
destroyed.")]
    Revert(RevertArgs),
    /// Flatten a disk, so that it depends on no image, snapshot or lower layer, also while it is
    /// attached
    #[command(after_help = "Examples:
  sealdisk disk flatten clone1 --rate 100MiB
  sealdisk disk flatten clone1 --wait
  sealdisk disk flatten clone1 --pause

For an attached disk the job runs in the background, unless --wait is given (`disk show` prints its
progress, `disk wait` waits for its end); for an unattached one it is done when the command returns. An interrupted job continues with --resume or
with the next attach.")]
    Flatten(JobArgs),
    /// Rotate the data encryption key (DEK) of a disk, also while it is attached
    #[command(after_help = "Examples:
  sealdisk disk rotate-dek boot1 --wait
  sealdisk disk rotate-dek boot1 --pause
  sealdisk disk rotate-dek boot1 --resume --rate 200MiB
  sealdisk disk rotate-dek boot1 --abort

All data is re-encrypted under a new DEK; then the old DEK is destroyed and the space of the old
ciphertext is freed. For an attached disk the job runs in the background, unless --wait is given
(`disk show` prints the generation and the progress). It survives a crash and a power loss. --abort keeps both DEKs; the
next rotate-dek replaces both. Snapshots keep their DEKs.")]
    RotateDek(JobArgs),
    /// Wait until the job of a disk is done, with a progress bar
    #[command(after_help = "Example:
  sealdisk disk wait boot1

It returns at once when no job is under way. A job that is paused, or whose disk is not attached, is an
error: nothing would end it.")]
    Wait {
        /// The disk
        name: String,
    },
    /// Delete a disk: overwrite its wrapped DEKs, then remove its files
    #[command(after_help = "Example:\n  sealdisk disk delete boot1 --yes")]
    Delete {
        /// The disk
        name: String,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
    /// Rewrap a disk's DEKs under another key, or change its limits, also while it is attached
    #[command(
        group(ArgGroup::new("key")),
        after_help = "Examples:
  sealdisk disk update boot1 --disk-encryption-set myset
  sealdisk disk update boot1 --platform-managed
  sealdisk disk update boot1 --iops 5000 --bandwidth 200MiB

Rewrapping moves no data. Limits apply to the attached disk until it is detached."
    )]
    Update(UpdateArgs),
    /// Write the plaintext of a disk, a snapshot or an image to a file or a pipe
    #[command(after_help = "Examples:
  sealdisk disk decrypt boot1 --output-file boot1.raw
  sealdisk disk decrypt snapshot:before-upgrade | sha256sum")]
    Decrypt(DecryptArgs),
    /// Export the plaintext of an unattached disk, a snapshot or an image as an image file
    #[command(after_help = "Examples:
  sealdisk disk export boot1 --file boot1.qcow2 --format qcow2
  sealdisk disk export boot1 --file boot1.vhd --format vhd
  sealdisk disk export snapshot:monday --file monday.qcow2 --format qcow2
  sealdisk disk export boot1 --file tuesday.qcow2 --format qcow2 --incremental --base monday

The image file is sparse and appears when it is complete; plaintext is written nowhere else. A VHD
is fixed and has exactly the disk's size; Azure takes whole MiB only. Formats other than raw need
the package qemu-utils. An incremental export has the 64 KiB clusters that changed since the
snapshot. Its backing file is a full export of the snapshot, in the same directory unless --backing
says otherwise.")]
    Export(ExportArgs),
    /// Grant access to the data of an unattached disk over HTTPS, for a limited time
    #[command(after_help = "Examples:
  sealdisk disk grant-access data1 --duration-in-seconds 3600
  curl --cacert ca.pem -o data1.vhd \"$(sealdisk disk grant-access data1 \\
      --duration-in-seconds 3600 --query accessSAS -o tsv)\"

`sealdisk serve` serves the disk there as a fixed VHD. Whoever has the URL can read the disk until
the time is over or access is revoked; it is shown once. Meanwhile the disk cannot be attached,
changed or deleted.")]
    GrantAccess(GrantArgs),
    /// Revoke all access to the data of a disk; of a disk in upload, complete the upload
    #[command(after_help = "Example:
  sealdisk disk revoke-access data1

Downloads under way end within a second.")]
    RevokeAccess {
        /// The disk
        name: String,
    },
    /// Check the files of an unattached disk: header, map, data and space
    #[command(after_help = "Examples:
  sealdisk disk check boot1
  sealdisk disk check boot1 --repair -o json

Exit status, as of qemu-img check: 0 nothing is wrong, or only what the next attach cleans up; 1 the
check failed; 2 damage; 3 only leaks, which is space in use for nothing. After --repair it is about
what remains.

--repair does only what is safe: it rewrites a torn header copy from the other one, frees leaked
space, removes files of layers that were dropped or never used, and makes durable what a killed
daemon had completed, so give it the --runtime-dir that the disk was attached with. If that runtime
map is lost, it needs --discard-unflushed. After a failed sync it reads all data again and makes
durable what is there; what the guest wrote shortly before may be lost: run fsck in the guest. The
report names the ranges that were written for the first time since the last flush. Where the data
file has holes in these, they are lost: the repair names them (`lostRanges`), and they read as
before they were written. Where it cannot be read (`unreadableRanges`), nothing is repaired: repair
the storage, or give the ranges up with --discard-unflushed. Other lost writes cannot be detected:
they read as random bytes or, where they overwrote something, as before.

The check cannot tell whether content was altered: XTS does not authenticate it.")]
    Check(CheckArgs),
    /// Copy an unattached disk as it is: ciphertext, map and header
    #[command(after_help = "Example:
  sealdisk disk copy boot1 --to /mnt/backup/boot1

No key is needed, unless a killed daemon left unflushed writes. `disk register` registers the copy
with another installation, which needs access to the key vault of the disk's key; `disk update
--disk-encryption-set` first moves the disk to a key that it can use.")]
    Copy(CopyArgs),
    /// Register a disk that was copied from another installation; its files stay in place
    #[command(after_help = "Examples:
  sealdisk disk register --dir /mnt/backup/boot1
  sealdisk disk register --dir /mnt/backup/boot1 --name boot2 --disk-encryption-set theirset

The key that wraps the disk must be available under the same URL, to a disk encryption set of this
installation. A copy is the same disk as its original: an installation can register only one of
them. `disk delete` also deletes the files of a registered disk.")]
    Register(RegisterArgs),
    /// Unregister an unattached disk; its files, header and key stay as they are
    #[command(after_help = "Examples:
  sealdisk disk unregister boot1
  sealdisk disk register --dir /mnt/backup/boot1

The disk can be registered again, in this or another installation, from the directory that the
command prints. Writes that a killed daemon had completed are made durable first, so give the
--runtime-dir that the disk was attached with. Nothing in this installation keeps the key of the
disk from then on: keep it yourself, and a disk encryption set that may use it.")]
    Unregister {
        /// The disk
        name: String,
    },
    /// Take a disk over from a host that is gone, as it was flushed last
    #[command(after_help = "Example:
  sealdisk disk takeover boot1 --host-is-off

It is refused while the host that has the disk is known to live, or has the lock of the disk on the
storage. Storage that cannot cut one host off needs your word that the host is off: a host that only
hangs may go on, and its guest with it. Then attach the disk. `host evict` does this for all disks of a
host, as they are attached.")]
    Takeover(TakeoverArgs),
}

pub fn run(context: &Context, args: DiskArgs) -> Result<(), CliError> {
    match args.command {
        DiskCommand::Create(args) => create(context, args),
        DiskCommand::List(filter) => filter.list(context),
        DiskCommand::Wait { name } => wait(context, &name),
        DiskCommand::Show { name } => show_disk(context, &name),
        DiskCommand::Events { name, follow } => events(context, &name, follow),
        DiskCommand::Delete { name, yes } => delete(context, &name, yes),
        DiskCommand::Resize { name, size } => {
            layers::change(context, &name, &LayerOp::Grow { size })?;
            show_disk(context, &name)
        }
        DiskCommand::Revert(args) => layers::revert(context, &args),
        DiskCommand::Flatten(args) => layers::job(context, JobKind::Flatten, &args),
        DiskCommand::RotateDek(args) => layers::job(context, JobKind::Rotate, &args),
        DiskCommand::Update(args) => update(context, args),
        DiskCommand::Decrypt(args) => decrypt(context, args),
        DiskCommand::Export(args) => export(context, args),
        DiskCommand::GrantAccess(args) => access::grant(context, ResourceKind::Disk, &args),
        DiskCommand::RevokeAccess { name } => access::revoke(context, ResourceKind::Disk, &name),
        DiskCommand::Check(args) => check(context, &args),
        DiskCommand::Copy(args) => copy(context, &args),
        DiskCommand::Register(args) => register(context, args),
        DiskCommand::Unregister { name } => unregister(context, &name),
        DiskCommand::Takeover(args) => takeover(context, &args),
    }
}

fn delete(context: &Context, name: &str, yes: bool) -> Result<(), CliError> {
    let installation = context.installation()?;
    // A name that does not exist is refused before the question.
    disks::show(&installation, ResourceKind::Disk, name)?;
    let question = format!("The disk {name} and all its data will be destroyed. Continue?");
    context.output.confirm(&question, yes)?;
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    disks::delete(&installation, ResourceKind::Disk, name, &runtime_dir)?;
    // What a disk and its clone have shared.
    if !installation.catalog().merges()?.is_empty() {
        layers::with_changes(context, true, |changes| {
            merge_left(context, changes, ResourceKind::Disk, name);
            Ok(())
        })?;
    }
    Ok(())
}
