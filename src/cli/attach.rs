//! `sealdisk attach`, by QEMU's conventions for vhost-user back-ends.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::error::ContextKind;
use clap::{Args, FromArgMatches};
use nix::unistd::{Group, Uid};
use rustix::process::geteuid;
use serde::Serialize;

use ::attach::{self, AttachRequest, GuardOptions, SocketAccess, SocketSource, Watchdog, attach};
use alarms::notify::Target;
use dataplane::DataplaneError;
use disks::{Unflushed, parse_size};
use installation::{Installation, runtime_dir};
use protocol::{Discard, OnFull, OnRevoke};
use sandbox::{Launch, Rule, Sandbox, User};
use volume::CacheMode;

use super::cpus::CpuList;
use super::limits::LimitArgs;
use super::{CliError, Context, Output, Tabular, ids};

/// The subcommand that is the data plane.
const DATA_PLANE: &str = "data-plane";

/// Queues offered when nothing is said, at least: QEMU refuses a back-end that has fewer than the guest
/// has vCPUs. On a host with more CPUs it is as many as these.
const MIN_QUEUES: u16 = 16;
pub(super) const MAX_QUEUES: u16 = 256;
/// Entries of a queue when nothing is said: requests of 1 MiB in pages of 4 KiB fit.
const QUEUE_SIZE: u16 = 256;

/// A little longer than a guest on another CPU takes to be woken and send the next request.
const POLL_US: u32 = 100;

/// Arguments of `attach`.
#[derive(Args)]
#[command(after_help = "Examples:
  sealdisk attach mydisk --socket-path /run/sealdisk/mydisk.sock
  qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on \\
    -M q35,memory-backend=mem \\
    -chardev socket,id=c0,path=/run/sealdisk/mydisk.sock,reconnect-ms=1000 \\
    -device vhost-user-blk-pci,chardev=c0
  sealdisk attach mydisk --socket-path /run/sealdisk/mydisk.sock --socket-group libvirt-qemu
  sealdisk attach mydisk --socket-path /run/sealdisk/mydisk.sock --sandbox strict --user disks
  sealdisk attach mydisk --socket-path /run/sealdisk/mydisk-in.sock --incoming
  sealdisk attach --print-capabilities
  sealdisk attach --print-sandbox -o json

QEMU before 9.2 has reconnect=1 instead of reconnect-ms=1000. Users of the socket need execute
permission on its directory, as /run/sealdisk gives it.")]
pub struct AttachArgs {
    /// The disk: its name or its directory
    #[arg(value_name = "DISK", required_unless_present_any = ["blk_file", "print_capabilities", "print_sandbox"])]
    disk: Option<String>,
    /// The disk, by QEMU's convention for vhost-user back-ends
    #[arg(long, value_name = "DISK", conflicts_with = "disk")]
    blk_file: Option<String>,
    /// The Unix socket to create and listen on
    #[arg(long, value_name = "PATH", conflicts_with = "fd",
          required_unless_present_any = ["fd", "print_capabilities", "print_sandbox"])]
    socket_path: Option<PathBuf>,
    /// Permissions of the socket, in octal: who may write to it may connect [default: 0600, with
    /// --socket-group 0660]
    #[arg(long, value_name = "MODE", conflicts_with = "fd", value_parser = socket_mode)]
    socket_mode: Option<u32>,
    /// Group of the socket, by name or number, for a VMM that runs as another user
    #[arg(long, value_name = "GROUP", conflicts_with = "fd", value_parser = group)]
    socket_group: Option<u32>,
    /// An inherited Unix socket, listening or connected
    #[arg(long, value_name = "N")]
    fd: Option<i32>,
    /// Wait for the disk, which another attach has, until a guest that is migrated goes on here
    #[arg(long)]
    incoming: bool,
    /// Attach the disk read-only
    #[arg(long)]
    read_only: bool,
    /// How to discard blocks: 'punch' frees their space, 'overwrite' first writes random bytes over
    /// their ciphertext, 'off' offers no discard
    #[arg(long, value_name = "off|punch|overwrite", default_value = "punch")]
    discard: Discard,
    /// What to do with requests that find the host's storage full: 'pause' retries them until there is
    /// space, 'error' fails them
    #[arg(long, value_name = "pause|error", default_value = "pause")]
    on_full: OnFull,
    /// Number of queues, at least one for each vCPU [default: one for each CPU of the host, at least
    /// 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_QUEUES)))]
    num_queues: Option<u16>,
    /// Queue size that requests must fit, a power of two: the guest is told to use two segments less in
    /// a request. Queues of any size up to 1024 are served
    #[arg(long, value_name = "N", default_value_t = QUEUE_SIZE, value_parser = queue_size)]
    queue_size: u16,
    /// Memory for requests in flight, over all queues, as 64MiB [default: 64MiB, or 512KiB for each
    /// queue if that is more]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Use reserved huge pages of the host for that memory, as far as there are any
    #[arg(long)]
    huge_pages: bool,
    /// Busy-poll time of a queue in µs, 0 disables
    #[arg(long, value_name = "US", default_value_t = POLL_US,
          value_parser = clap::value_parser!(u32).range(..=1000))]
    poll_us: u32,
    /// Threads that help to encrypt and decrypt requests of 64 KiB and more, where a CPU encrypts slower than the
    /// storage writes
    #[arg(long, value_name = "N", default_value_t = 0,
          value_parser = clap::value_parser!(u16).range(..=16))]
    crypto_threads: u16,
    /// CPUs that queues run on, each queue on one of them in turn, as 0-3,8: those next to the storage and the guest's
    /// memory. Its buffers are in the memory of that CPU [default: wherever the kernel lets them]
    #[arg(long, value_name = "LIST", value_parser = CpuList::parse)]
    cpus: Option<CpuList>,
    #[command(flatten)]
    limits: LimitArgs,
    /// Interval of the checks that the vault still grants the disk's key: seconds, or a number with s,
    /// m, h or d; at least 1 s
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = check_interval)]
    key_check_interval: Duration,
    /// Grace period: how long to serve the disk while its vault is unreachable
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    key_grace: Duration,
    /// What to do with requests while the vault refuses the key: 'error' fails them, 'pause' leaves
    /// them in the queue until the key is granted again
    #[arg(long, value_name = "error|pause", default_value = "error")]
    on_revoke: OnRevoke,
    /// Initial cache mode; a driver can change it, and later attaches keep that [default: the one that
    /// was set last, at first writeback]
    #[arg(long, value_name = "writeback|writethrough", value_parser = cache_mode)]
    cache: Option<CacheMode>,
    /// Give up completed but unflushed writes whose runtime map is lost
    #[arg(long)]
    discard_unflushed: bool,
    /// Take the disk over from this host, which is gone and its guest with it: for one attach, and none of a unit
    #[arg(long, value_name = "HOST", conflicts_with = "discard_unflushed")]
    take_over_from: Option<String>,
    /// Tell a program or a webhook of the disk's events: an absolute path with arguments, which gets the event as
    /// JSON on stdin, or an http:// or https:// address, to which it is sent with POST
    #[arg(long, value_name = "COMMAND|URL")]
    on_event: Vec<Target>,
    /// The serial number that the guest sees [default: the start of the disk's id]
    #[arg(long, value_name = "TEXT", value_parser = serial)]
    serial: Option<String>,
    /// How confined the data plane has to be: 'strict' refuses to serve the disk without a part of its
    /// confinement, 'best-effort' says what is missing [default: strict for root, else best-effort]
    #[arg(long, value_name = "strict|best-effort")]
    sandbox: Option<Sandbox>,
    /// User that the data plane runs as, by name or number, when this process is root's [default: one
    /// that no other data plane has]
    #[arg(long, value_name = "USER", value_parser = user)]
    user: Option<User>,
    /// Another directory in which snapshots and images may be made while the disk is attached
    #[arg(long, value_name = "DIR")]
    allow_data_dir: Vec<PathBuf>,
    /// Print what the data plane and this process may do, and why, and ignore the other arguments
    #[arg(long)]
    print_sandbox: bool,
    /// Print the capabilities of this back-end as JSON, and ignore all other arguments
    #[arg(long)]
    print_capabilities: bool,
}

/// Arguments of the data plane. All else it gets over its sockets.
#[derive(Args)]
pub struct DataPlaneArgs {
    #[arg(long)]
    sandbox: Sandbox,
    /// As UID:GID.
    #[arg(long)]
    user: Option<User>,
}

/// Arguments of the launcher of data planes.
#[derive(Args)]
pub struct LauncherArgs {
    #[command(flatten)]
    data_plane: DataPlaneArgs,
    /// Where the attach process may change files.
    #[arg(long)]
    changed: Vec<PathBuf>,
}

/// Arguments of an attach process that goes on as this program.
#[derive(Args)]
pub struct ContinueArgs {
    /// The disk, for whoever looks at the process
    disk: String,
    /// The descriptor of what the program before this one was at
    #[arg(long)]
    state: i32,
}

impl DataPlaneArgs {
    fn launch(&self) -> Launch {
        Launch {
            sandbox: self.sandbox,
            user: self.user,
        }
    }
}

/// Queues that are offered when nothing is said.
pub(super) fn ordinary_queues() -> u16 {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    u16::try_from(cpus)
        .unwrap_or(MAX_QUEUES)
        .clamp(MIN_QUEUES, MAX_QUEUES)
}

/// Bytes that the disk may have, with so many queues.
fn memory(asked: Option<u64>, queues: u16) -> Result<u64, CliError> {
    let least = dataplane::least_memory(queues);
    match asked {
        None => Ok(dataplane::ordinary_memory(queues)),
        Some(memory) if memory >= least => Ok(memory),
        Some(_) => Err(CliError::usage(format!(
            "--memory is too little: {queues} queues need at least {}KiB; give more, or offer fewer \
             queues (--num-queues)",
            least.div_ceil(1024)
        ))),
    }
}

fn queue_size(text: &str) -> Result<u16, String> {
    let size: u16 = text.parse().map_err(|_| "not a number".to_owned())?;
    // Firmware needs three entries for a request; 1024 is the most that QEMU can ask for.
    if size.is_power_of_two() && (4..=1024).contains(&size) {
        Ok(size)
    } else {
        Err("a power of two from 4 to 1024 is needed".into())
    }
}

fn cache_mode(text: &str) -> Result<CacheMode, String> {
    match text {
        "writeback" => Ok(CacheMode::WriteBack),
        "writethrough" => Ok(CacheMode::WriteThrough),
        other => Err(format!(
            "'{other}' is neither 'writeback' nor 'writethrough'"
        )),
    }
}

fn socket_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && !text.starts_with('+') => Ok(mode),
        _ => Err("permission bits in octal are needed, such as 0660".into()),
    }
}

/// The id of a group of this host.
fn group(text: &str) -> Result<u32, String> {
    if let Ok(id) = text.parse() {
        return ids::id(id);
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err("there is no such group".into()),
        Err(e) => Err(format!("the host's groups cannot be looked up: {e}")),
    }
}

/// A user of this host, with its group.
fn user(text: &str) -> Result<User, String> {
    let found = match text.parse() {
        Ok(uid) => nix::unistd::User::from_uid(Uid::from_raw(ids::id(uid)?)),
        Err(_) => nix::unistd::User::from_name(text),
    };
    let user = match (found, text.parse::<u32>()) {
        (Ok(Some(user)), _) => User {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        },
        (_, Ok(uid)) => User {
            uid: ids::id(uid)?,
            gid: uid,
        },
        (Ok(None), _) => return Err("there is no such user".into()),
        (Err(e), _) => return Err(format!("the host's users cannot be looked up: {e}")),
    };
    match (user.uid, geteuid().is_root()) {
        (0, _) => Err("a data plane that runs as root is not confined; name another user".into()),
        (uid, false) if uid != geteuid().as_raw() => {
            Err("only root can have the data plane run as another user".into())
        }
        _ => Ok(user),
    }
}

fn serial(text: &str) -> Result<String, String> {
    if text.len() <= 20 && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        Ok(text.into())
    } else {
        Err("at most 20 printable ASCII characters".into())
    }
}

fn check_interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    match interval >= Duration::from_secs(1) && interval <= Duration::from_secs(24 * 3600) {
        true => Ok(interval),
        false => Err("a time from 1 s to 1 day is needed".into()),
    }
}

/// Whole seconds, or a whole number of the unit that follows it.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds: u64 = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        other => return Err(format!("'{other}' is no unit of time: use s, m, h or d")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "a number is needed".to_owned())?;
    match number.checked_mul(seconds) {
        // A hundred years: clocks can add that to any time.
        Some(seconds) if seconds <= 100 * 366 * 24 * 3600 => Ok(Duration::from_secs(seconds)),
        _ => Err("that is too long".into()),
    }
}

/// Whether the program was started only to be asked what it can do. QEMU's vhost-user convention
/// has all other arguments ignored then, also those that are unknown, so they are not parsed; and
/// it names a back-end by its program alone, so `attach` need not be there.
pub(super) fn wants_capabilities(arguments: &[OsString]) -> bool {
    let asked = |a: &OsString| a == "--print-capabilities";
    arguments.iter().any(asked)
        && (arguments.get(1).is_some_and(asked) || arguments.iter().any(|a| a == "attach"))
}

/// Prints the capabilities that QEMU's schema `vhost-user.json` defines for block back-ends.
pub(super) fn print_capabilities(output: &Output) -> Result<(), CliError> {
    output.text(r#"{"type": "block", "features": ["read-only", "blk-file"]}"#)
}

/// Whether these are arguments of `attach`, with which a unit is to run it.
///
/// # Errors
/// [`CliError::usage`], with what is wrong with them.
pub(super) fn check_words(words: &[String]) -> Result<(), CliError> {
    let command = AttachArgs::augment_args(clap::Command::new("attach")).no_binary_name(true);
    let matches = command.try_get_matches_from(words);
    let matches = matches.map_err(|mut error| {
        // They are of a command line that nobody has typed.
        for said in [ContextKind::Suggested, ContextKind::Usage] {
            error.remove(said);
        }
        let wrong = CliError::arguments(&error);
        CliError {
            message: format!(
                "{}; `sealdisk attach --help` has the options that may follow --",
                wrong.message
            ),
            ..wrong
        }
    })?;
    if matches.get_flag("print_sandbox") || matches.get_flag("print_capabilities") {
        return Err(CliError::usage(
            "a unit is to serve the disk, and not to print something",
        ));
    }
    let limits = LimitArgs::from_arg_matches(&matches);
    limits.map_err(|error| CliError::arguments(&error))?.check()
}

pub(super) fn run(context: &Context, args: AttachArgs) -> Result<(), CliError> {
    if args.print_capabilities {
        return print_capabilities(&context.output);
    }
    if args.print_sandbox {
        return print_sandbox(&context.output);
    }
    let Some(disk) = args.disk.or(args.blk_file) else {
        return Err(CliError::usage("name the disk to attach"));
    };
    let socket = match (args.socket_path, args.fd) {
        (Some(path), _) => {
            let access = SocketAccess {
                mode: args.socket_mode,
                group: args.socket_group,
            };
            SocketSource::Path(path, access)
        }
        (None, Some(fd)) => SocketSource::Fd(fd),
        (None, None) => return Err(CliError::usage("give --socket-path or --fd")),
    };
    args.limits.warn();
    let num_queues = args.num_queues.unwrap_or_else(ordinary_queues);
    let memory = memory(args.memory, num_queues)?;
    let request = AttachRequest {
        disk,
        socket,
        incoming: args.incoming,
        read_only: args.read_only,
        discard: args.discard,
        on_full: args.on_full,
        num_queues,
        memory,
        huge_pages: args.huge_pages,
        queue_size: args.queue_size,
        poll_us: args.poll_us,
        crypto_threads: args.crypto_threads,
        cpus: args.cpus.map(CpuList::into_cpus).unwrap_or_default(),
        limits: args.limits.limits(),
        guard: GuardOptions {
            interval: args.key_check_interval,
            grace: args.key_grace,
            on_revoke: args.on_revoke,
        },
        launch: Launch {
            sandbox: args.sandbox.unwrap_or_else(Sandbox::ordinary),
            // Who is no other user has nothing to change to.
            user: args.user.filter(|_| geteuid().is_root()),
        },
        data_dirs: args.allow_data_dir,
        serial: args.serial,
        cache: args.cache,
        on_event: args.on_event,
        take_over_from: args.take_over_from,
        unflushed: match args.discard_unflushed {
            true => Unflushed::GivenUp,
            false => Unflushed::Needed,
        },
        runtime_dir: runtime_dir(context.runtime_dir.as_deref()),
    };
    Ok(attach(context.installation()?, request)?)
}

/// Runs the data plane. It tells errors to the attach process, which prints them.
pub(super) fn run_data_plane(args: &DataPlaneArgs) -> Result<(), CliError> {
    Ok(dataplane::serve(args.launch())?)
}

/// Tells an attach process what this program reads of it, if it can use that one's installation.
pub(super) fn tell_versions(context: &Context) -> Result<(), CliError> {
    // A process that does not name it is of a version that only wants to know what is read.
    let refused = match &context.state_dir {
        None => None,
        Some(_) => Installation::look(context.place()?).err(),
    };
    let refused = refused.map(|error| error.to_string());
    context.output.text(&attach::attach_versions(refused))
}

/// Goes on as the attach process that another program was.
pub(super) fn continue_attach(context: &Context, args: &ContinueArgs) -> Result<(), CliError> {
    log::debug!("going on with the disk {}", args.disk);
    Ok(attach::continue_attach(
        installation_again(context)?,
        args.state,
    )?)
}

/// The installation, which was there a moment ago: what keeps it from being opened is waited for. The data plane
/// serves the disk meanwhile, and nobody watches over it.
fn installation_again(context: &Context) -> Result<Installation, CliError> {
    let mut said = None;
    let mut watchdog = Watchdog::asked_for();
    loop {
        let again = watchdog.tell(Instant::now() + Duration::from_millis(500));
        let error = match context.installation() {
            Ok(installation) => return Ok(installation),
            Err(error) if attach::is_told_to_end() => return Err(error),
            Err(error) => error.message,
        };
        if said.as_ref() != Some(&error) {
            log::error!(
                "the attach process cannot go on as this program yet, and tries again until it can or is told to end; \
                 its disk is served: {error}"
            );
            said = Some(error);
        }
        std::thread::sleep(again.saturating_duration_since(Instant::now()));
    }
}

/// Runs the launcher of data planes.
pub(super) fn run_launcher(args: LauncherArgs) -> Result<(), CliError> {
    sandbox::run_launcher(DATA_PLANE, args.data_plane.launch(), args.changed)
        .map_err(|error| CliError::new("LauncherFailed", error.to_string()))
}

/// A line of `--print-sandbox`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RuleView {
    process: &'static str,
    by: &'static str,
    what: String,
    allowed: String,
    why: String,
}

impl Tabular for RuleView {
    const COLUMNS: &'static [&'static str] = &["Process", "By", "What", "Allowed", "Why"];

    fn cells(&self) -> Vec<String> {
        let Self {
            process,
            by,
            what,
            allowed,
            why,
        } = self;
        vec![
            (*process).into(),
            (*by).into(),
            what.clone(),
            allowed.clone(),
            why.clone(),
        ]
    }
}

/// Prints what the processes of an attach may do, from the tables that they are confined by.
fn print_sandbox(output: &Output) -> Result<(), CliError> {
    let view = |rule: Rule| RuleView {
        process: rule.process,
        by: rule.by,
        what: rule.what.into(),
        allowed: rule.allowed.into(),
        why: rule.why.into(),
    };
    let rules = [dataplane::sandbox_rules(), attach::sandbox_rules()].concat();
    let rules: Vec<_> = rules.into_iter().map(view).collect();
    output.list(&rules)
}

impl From<DataplaneError> for CliError {
    fn from(error: DataplaneError) -> Self {
        Self::new("DataPlaneFailed", error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_and_groups_are_those_of_the_host() {
        assert_eq!(socket_mode("0660"), Ok(0o660));
        assert_eq!(socket_mode("777"), Ok(0o777));
        for bad in ["", "8", "1777", "+60", "rw", "-1"] {
            assert!(socket_mode(bad).is_err(), "{bad}");
        }
        assert_eq!(group("root"), Ok(0));
        assert_eq!(group("12345"), Ok(12345));
        assert!(group("no such group").is_err());
    }

    #[test]
    fn users_are_those_of_the_host_and_never_root() {
        for bad in ["root", "0", "no such user"] {
            assert!(user(bad).is_err(), "{bad}");
        }
        if geteuid().is_root() {
            let unnamed = User {
                uid: 4_000_000,
                gid: 4_000_000,
            };
            assert_eq!(user("4000000"), Ok(unnamed));
            assert!(user("nobody").is_ok());
        } else {
            assert!(user("4000000").is_err(), "that is somebody else");
        }
    }

    #[test]
    fn times_have_units_and_bounds() {
        let seconds = |text: &str| duration(text).map(|time| time.as_secs());
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("0s"), Ok(0));
        assert_eq!(seconds("2m"), Ok(120));
        assert_eq!(seconds("1h"), Ok(3600));
        assert_eq!(seconds("3d"), Ok(259_200));
        for bad in [
            "",
            "s",
            "1w",
            "-1",
            "1.5h",
            "h1",
            "99999999999999999999",
            "40000d",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(check_interval("0").is_err() && check_interval("2d").is_err());
        assert!(check_interval("1").is_ok());
    }
}
