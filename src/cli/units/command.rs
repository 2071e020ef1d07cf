//! The commands `enable` and `disable`.

use std::path::{Path, PathBuf};

use clap::Args;
use rustix::process::geteuid;
use serde::Serialize;

use super::drop_in::Wanted;
use super::files::{Before, Root, put, remove};
use super::needs::{Needs, RUNTIME_DIR};
use super::systemctl::Systemctl;
use crate::cli::{CliError, Context, attach};
use installation::envelope::ResourceKind;

/// Arguments of `enable`.
#[derive(Args)]
#[command(after_help = "Examples:
  sealdisk enable mydisk --group libvirt-qemu --now
  sealdisk enable mydisk --group kvm --queues 4 --iops 2000 --bandwidth 200MiB
  sealdisk enable mydisk --socket-activation -- --on-revoke pause --key-grace 4h

It writes a drop-in of the unit sealdisk@DISK.service, below /etc/systemd/system, in place of the one that it
wrote before: give all options again to change one. A unit that runs has the old options until it is started
again. Own settings of the unit go into another drop-in (systemctl edit sealdisk@DISK).")]
pub struct EnableArgs {
    /// The disk
    name: String,
    /// Group whose VMM may connect, by name or number: libvirt-qemu, kvm
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// The socket [default: /run/sealdisk/DISK.sock]
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,
    /// Permissions of the socket, in octal [default: 0600, with --group 0660]
    #[arg(long, value_name = "MODE")]
    socket_mode: Option<String>,
    /// systemd makes the socket, and attaches the disk when somebody connects
    #[arg(long)]
    socket_activation: bool,
    /// Number of queues, at least one for each vCPU
    #[arg(long, alias = "num-queues", value_name = "N")]
    queues: Option<String>,
    /// Maximum requests per second
    #[arg(long, value_name = "N")]
    iops: Option<String>,
    /// Burst of requests
    #[arg(long, value_name = "N")]
    iops_burst: Option<String>,
    /// Maximum bytes per second, as 100MiB
    #[arg(long, value_name = "SIZE")]
    bandwidth: Option<String>,
    /// Burst of bytes
    #[arg(long, value_name = "SIZE")]
    bandwidth_burst: Option<String>,
    /// Attach the disk read-only
    #[arg(long)]
    read_only: bool,
    /// Another directory in which snapshots and images may be made while the disk is attached
    #[arg(long, value_name = "DIR")]
    allow_data_dir: Vec<PathBuf>,
    /// Start the unit too
    #[arg(long, conflicts_with = "root")]
    now: bool,
    /// Work on the tree below this directory, which is not running
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Further options of `attach`, after --
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<String>,
}

/// Arguments of `disable`.
#[derive(Args)]
#[command(after_help = "Example:
  sealdisk disable mydisk --now

The disk and its vault stay. Drop-ins of your own stay too.")]
pub struct DisableArgs {
    /// The disk, which may be gone
    name: String,
    /// Stop the unit too: its guest's requests wait until the disk is attached again
    #[arg(long, conflicts_with = "root")]
    now: bool,
    /// Work on the tree below this directory, which is not running
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// What was done.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UnitView {
    disk: String,
    unit: String,
    enabled: bool,
    active: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<PathBuf>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    drop_ins: Vec<PathBuf>,
    /// Whether a drop-in is another one than before.
    changed: bool,
}

fn service(disk: &str) -> String {
    format!("sealdisk@{disk}.service")
}

fn socket(disk: &str) -> String {
    format!("sealdisk@{disk}.socket")
}

/// The tree, which only root changes if it is this host's.
fn tree(root: Option<PathBuf>, what: &str) -> Result<(Root, Systemctl), CliError> {
    match root {
        Some(root) => {
            let root = crate::cli::files::absolute("--root", &root)?;
            let tree = Root::of(root);
            Ok((tree.clone(), Systemctl::new(Some(tree))))
        }
        None if geteuid().is_root() => Ok((Root::default(), Systemctl::new(None))),
        None => Err(CliError::new(
            "Forbidden",
            format!("only root can {what} units of this host: run it as root, with sudo say"),
        )),
    }
}

/// Has a disk attached by its unit.
///
/// # Errors
/// One line: not root, no such disk, options that make no sense, or what systemctl says.
pub(in crate::cli) fn enable(context: &Context, args: EnableArgs) -> Result<(), CliError> {
    let (root, systemctl) = tree(args.root.clone(), "enable")?;
    if args.now && !systemctl.is_running() {
        return Err(CliError::new(
            "Systemctl",
            "systemd does not run here, so nothing can be started: leave --now away",
        ));
    }
    let now = args.now;
    let wanted = wanted(context, args)?;
    attach::check_words(&wanted.words())?;
    let service = service(&wanted.disk);
    let (of_service, of_socket) = (root.drop_in(&service), root.drop_in(&socket(&wanted.disk)));
    let before = [Before::of(&of_service)?, Before::of(&of_socket)?];
    let enabled = put_and_enable(&systemctl, &wanted, &of_service, &of_socket);
    if enabled.is_err() {
        before.iter().for_each(Before::restore);
    }
    let (unit, changed) = enabled?;
    let mut drop_ins = vec![of_service, of_socket];
    drop_ins.retain(|path| path.is_file());
    let was_active = systemctl.is_active(&service);
    if now {
        systemctl.run(&["start"], &[&unit])?;
    }
    if changed && was_active {
        context.output.note(&format!(
            "note: {service} runs with its old options; `systemctl restart {service}` gives it the new ones, and its \
             guest stalls meanwhile"
        ));
    }
    context.output.show(&UnitView {
        active: systemctl.is_active(&unit),
        disk: wanted.disk,
        unit,
        enabled: true,
        socket: Some(wanted.socket),
        drop_ins,
        changed,
    })
}

/// Writes the drop-ins and enables the unit that is to begin with. Which, and whether a drop-in has changed.
fn put_and_enable(
    systemctl: &Systemctl,
    wanted: &Wanted,
    of_service: &Path,
    of_socket: &Path,
) -> Result<(String, bool), CliError> {
    let mut changed = put(of_service, &wanted.service()?)?;
    changed |= match wanted.socket()? {
        Some(text) => put(of_socket, &text)?,
        None => remove(of_socket)?,
    };
    systemctl.reload()?;
    let (service, socket) = (service(&wanted.disk), socket(&wanted.disk));
    let (unit, other) = match wanted.by_socket {
        true => (socket, service),
        false => (service, socket),
    };
    // The disk is attached at the start of the host, or when somebody connects, and not both.
    systemctl.run(&["disable"], &[&other])?;
    systemctl.run(&["enable"], &[&unit])?;
    Ok((unit, changed))
}

/// What the arguments say, of a disk that is there.
fn wanted(context: &Context, args: EnableArgs) -> Result<Wanted, CliError> {
    let installation = context.installation()?;
    let disk = disks::show(&installation, ResourceKind::Disk, &args.name)?;
    let socket = match &args.socket_path {
        Some(path) => crate::cli::files::absolute("--socket-path", path)?,
        None => Path::new(RUNTIME_DIR).join(format!("{}.sock", disk.name)),
    };
    let mut further = Vec::new();
    for dir in &args.allow_data_dir {
        further.push(crate::cli::files::absolute("--allow-data-dir", dir)?);
    }
    let mut options = Vec::new();
    for (option, value) in [
        ("--num-queues", &args.queues),
        ("--iops", &args.iops),
        ("--iops-burst", &args.iops_burst),
        ("--bandwidth", &args.bandwidth),
        ("--bandwidth-burst", &args.bandwidth_burst),
    ] {
        if let Some(value) = value {
            options.extend([option.to_owned(), value.clone()]);
        }
    }
    if args.read_only {
        options.push("--read-only".into());
    }
    for dir in &further {
        options.extend(["--allow-data-dir".into(), dir.display().to_string()]);
    }
    options.extend(args.options);
    let mut needs = Needs::of(&installation, &disk.directory, &socket, &further)?;
    needs.take_options(&options);
    Ok(Wanted {
        disk: disk.name,
        socket,
        group: args.group,
        mode: args.socket_mode,
        by_socket: args.socket_activation,
        options,
        needs,
    })
}

/// Has a disk attached by its unit no more.
///
/// # Errors
/// One line: not root, a disk that is not there and has no drop-in, or what systemctl says.
pub(in crate::cli) fn disable(context: &Context, args: DisableArgs) -> Result<(), CliError> {
    let (root, systemctl) = tree(args.root, "disable")?;
    if args.now && !systemctl.is_running() {
        return Err(CliError::new(
            "Systemctl",
            "systemd does not run here, so nothing can be stopped: leave --now away",
        ));
    }
    let (service, socket) = (service(&args.name), socket(&args.name));
    let drop_ins = [root.drop_in(&service), root.drop_in(&socket)];
    if !drop_ins.iter().any(|path| path.is_file()) {
        // A slip of the pen is not a disk that is disabled already.
        disks::show(&context.installation()?, ResourceKind::Disk, &args.name)?;
    }
    systemctl.run(&["disable"], &[&service, &socket])?;
    if args.now {
        // The socket first, which would start the other again.
        systemctl.run(&["stop"], &[&socket, &service])?;
    }
    let mut changed = false;
    for path in &drop_ins {
        changed |= remove(path)?;
    }
    systemctl.reload()?;
    context.output.show(&UnitView {
        active: systemctl.is_active(&service),
        disk: args.name,
        unit: service,
        enabled: false,
        socket: None,
        drop_ins: Vec::new(),
        changed,
    })
}
