//! The commands `enable` and `disable`.

use std::path::{Component, Path, PathBuf};

use clap::Args;
use rustix::process::geteuid;
use serde::Serialize;

use super::change::{Change, service, socket};
use super::drop_in::Wanted;
use super::files::{Root, remove};
use super::needs::{Needs, RUNTIME_DIR};
use super::systemctl::Systemctl;
use crate::cli::{CliError, Context, attach, limits};
use installation::envelope::ResourceKind;

/// Bytes of the path of a socket at most (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// Options that have another name here than in `attach`.
const NAMES: [(&str, &str); 2] = [
    ("--socket-group", "--group"),
    ("--fd", "--socket-activation"),
];

/// Options that are right once, when somebody has looked, and not whenever a unit starts its disk again.
const ONCE: [&str; 2] = ["--discard-unflushed", "--take-over-from"];

/// Arguments of `enable`.
#[derive(Args)]
#[command(after_help = "Examples:
  sealdisk enable mydisk --group libvirt-qemu --now
  sealdisk enable mydisk --group kvm --queues 4 --iops 2000 --bandwidth 200MiB
  sealdisk enable mydisk --socket-activation -- --on-revoke pause --key-grace 4h

It writes a drop-in of the unit sealdisk@DISK.service, below /etc/systemd/system, in place of the one that it
wrote before: give all options again to change one. A unit that runs has the old options until it is started
again; but where --socket-activation is added or taken away, a disk that is served is moved to the other unit
at once, and its guest stalls meanwhile. Own settings of the unit go into another drop-in (systemctl edit sealdisk@DISK).")]
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
    #[arg(long, alias = "num-queues", value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=i64::from(attach::MAX_QUEUES)))]
    queues: Option<u16>,
    /// Maximum requests per second
    #[arg(long, value_name = "N", value_parser = as_written(limits::iops))]
    iops: Option<String>,
    /// Burst of requests
    #[arg(long, value_name = "N")]
    iops_burst: Option<String>,
    /// Maximum bytes per second, as 100MiB, and at least 64KiB; discards and zeroes count as requests alone
    #[arg(long, value_name = "SIZE", value_parser = as_written(limits::bandwidth))]
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
    // What follows -- has the names of `attach`.
    let own = args.options.clone();
    let wanted = wanted(context, args)?;
    attach::check_words(&wanted.words()).map_err(|error| in_own_names(error, &own))?;
    let changed = Change::of(&root, &systemctl, &wanted)?.make()?;
    let (service, unit) = (service(&wanted.disk), changed.unit);
    let mut drop_ins = vec![root.drop_in(&service), root.drop_in(&socket(&wanted.disk))];
    drop_ins.retain(|path| path.is_file());
    let was_active = systemctl.is_at_work(&unit) || systemctl.is_at_work(&service);
    if now {
        systemctl.run(&["start"], &[&unit]).map_err(|mut error| {
            error.message = format!(
                "{}; {unit} is enabled all the same: `journalctl -u {service}` says why it does not start",
                error.message
            );
            error
        })?;
    }
    if changed.moved {
        context.output.note(&format!(
            "note: the disk is served by {unit} now, and was by the other unit; its guest has stalled meanwhile"
        ));
    } else if changed.drop_ins && was_active {
        context.output.note(&format!(
            "note: {unit} runs with its old options; `systemctl restart {unit}` gives it the new ones, and its guest \
             stalls meanwhile"
        ));
    }
    context.output.show(&UnitView {
        active: systemctl.is_active(&unit),
        disk: wanted.disk,
        unit,
        enabled: true,
        socket: Some(wanted.socket),
        drop_ins,
        changed: changed.drop_ins,
    })
}

/// What the arguments say, of a disk that is there.
fn wanted(context: &Context, args: EnableArgs) -> Result<Wanted, CliError> {
    let installation = context.installation()?;
    let disk = disks::show(&installation, ResourceKind::Disk, &args.name)?;
    let socket = match &args.socket_path {
        Some(path) => normal("--socket-path", path)?,
        None => Path::new(RUNTIME_DIR).join(format!("{}.sock", disk.name)),
    };
    let length = socket.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(CliError::usage(format!(
            "the socket {} has a path of {length} bytes, and the system takes {MAX_SOCKET_PATH} at most: give a \
             shorter --socket-path",
            socket.display()
        )));
    }
    let mut further = Vec::new();
    for dir in &args.allow_data_dir {
        further.push(normal("--allow-data-dir", dir)?);
    }
    let mut options = Vec::new();
    for (option, value) in [
        (
            "--num-queues",
            &args.queues.map(|queues| queues.to_string()),
        ),
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
    refuse_once(&options)?;
    let mut needs = Needs::of(&installation, &disk.directory, &socket, &further)?;
    needs.take_options(&options)?;
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

fn refuse_once(options: &[String]) -> Result<(), CliError> {
    let mut names = options
        .iter()
        .map(|word| word.split_once('=').map_or(word.as_str(), |(name, _)| name));
    match names.find(|name| ONCE.contains(name)) {
        None => Ok(()),
        Some(name) => Err(CliError::usage(format!(
            "{name} gives up writes of today, and in a unit those of any later day too: attach the disk with it once, \
             by hand, and enable it without"
        ))),
    }
}

/// Takes an option as it was written, if `check` takes it.
fn as_written(
    check: fn(&str) -> Result<u64, String>,
) -> impl Fn(&str) -> Result<String, String> + Clone + Send + Sync + 'static {
    move |text| check(text).map(|_| text.to_owned())
}

/// A path as a unit can have it: absolute and without `..`, which systemd does not take.
fn normal(option: &str, path: &Path) -> Result<PathBuf, CliError> {
    let path = crate::cli::files::absolute(option, path)?;
    match path.components().any(|part| part == Component::ParentDir) {
        true => Err(CliError::usage(format!(
            "{option} {}: systemd takes no path with '..' in it: write out where it leads",
            path.display()
        ))),
        false => Ok(path),
    }
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
        let stopped = systemctl.run(&["stop"], &[&socket, &service]);
        stopped.map_err(|error| half_way(error, "the units are disabled, and not stopped"))?;
    }
    let mut changed = false;
    let removed = drop_ins.iter().try_for_each(|path| {
        changed |= remove(path)?;
        Ok(())
    });
    // Also where one is left: systemd is to know of those that are gone.
    let reloaded = systemctl.reload();
    removed
        .and(reloaded)
        .map_err(|error| half_way(error, "the units are disabled"))?;
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

/// A refusal of words of `attach`, by the names that they have here.
fn in_own_names(mut error: CliError, own: &[String]) -> CliError {
    for (of_attach, here) in NAMES {
        let is_own = own.iter().any(|word| word.starts_with(of_attach));
        if !is_own {
            error.message = error.message.replace(of_attach, here);
        }
    }
    error
}

/// What failed, with what was done before it.
fn half_way(mut error: CliError, done: &str) -> CliError {
    error.message = format!("{}; {done}: run the command again", error.message);
    error
}
