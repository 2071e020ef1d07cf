//! The subcommands of `disk`.

use clap::{ArgGroup, Args, Subcommand};

use super::check::{CheckArgs, check};
use super::create::{CreateArgs, create};
use super::export::{DecryptArgs, ExportArgs, decrypt, export};
use super::layers::{self, JobArgs, RevertArgs};
use super::moving::{CopyArgs, RegisterArgs, copy, register, unregister};
use super::show::{events, show_disk};
use super::update::{UpdateArgs, update};
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
    Check(CheckArgs),
    /// Copy an unattached disk as it is: ciphertext, map and header
    #[command(after_help = "Example:
  sealdisk disk copy boot1 --to /mnt/backup/boot1

No key is needed, unless a killed daemon left something to be made durable. `disk register` makes the copy known to another installation, which needs access to
the key vault that has the disk's key; `disk update --disk-encryption-set` puts it under such a key.")]
    Copy(CopyArgs),
    /// Make a disk known that was copied from another installation; its files stay where they are
    #[command(after_help = "Examples:
  sealdisk disk register --dir /mnt/backup/boot1
  sealdisk disk register --dir /mnt/backup/boot1 --name boot2 --disk-encryption-set theirset

The key that wraps the disk must be reachable under the same URL, through a disk encryption set of this
installation that may use it. A copy is the same disk as its original: an installation knows one of
them. `disk delete` deletes the files of a registered disk as of any other.")]
    Register(RegisterArgs),
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

pub fn run(context: &Context, args: DiskArgs) -> Result<(), CliError> {
    match args.command {
        DiskCommand::Create(args) => create(context, args),
        DiskCommand::List => {
            let views = disks::list(&context.installation()?, ResourceKind::Disk)?;
            context.output.list(&views)
        }
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
        DiskCommand::Check(args) => check(context, &args),
        DiskCommand::Copy(args) => copy(context, &args),
        DiskCommand::Register(args) => register(context, args),
        DiskCommand::Unregister { name } => unregister(context, &name),
    }
}

fn delete(context: &Context, name: &str, yes: bool) -> Result<(), CliError> {
    let installation = context.installation()?;
    // A name that does not exist is said before anything is asked.
    disks::show(&installation, ResourceKind::Disk, name)?;
    let question = format!("The disk {name} and all its data will be destroyed. Continue?");
    context.output.confirm(&question, yes)?;
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    Ok(disks::delete(
        &installation,
        ResourceKind::Disk,
        name,
        &runtime_dir,
    )?)
}
