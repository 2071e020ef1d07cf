//! The program: takes the command line apart, and runs one command.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use installation::{name_host, platform_notice};
use keys::{crypto_module, harden_process, require_module};
use traces::Span;

use super::global::{Context, GlobalArgs};
use super::tracing::Traced;
use super::{
    CliError, Output, OutputFormat, alarm, arm_ids, attach, audit, backup, catalog, completions,
    dashboard, des, disk, doctor, event_notifier, identity, image, keyvault, lock, logging,
    manpages, metrics, named, reference, role, serve, similar, snapshot, status, store_process,
    top, tracing, units, upgrade, usage, version,
};

/// The version, and by which module keys are made and used.
static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} ({})", env!("CARGO_PKG_VERSION"), crypto_module()));

#[derive(Parser)]
#[command(
    name = "sealdisk",
    version,
    about = "Server-side encryption for virtual machine disks, with customer-managed keys",
    max_term_width = 100,
    after_help = "Example:
  sealdisk keyvault create myvault
  sealdisk keyvault key create mykey --vault-name myvault --kty RSA --size 3072
  sealdisk disk-encryption-set create myset --key-url https://myvault.vault.localhost/keys/mykey
  sealdisk disk create mydisk --size 10GiB --disk-encryption-set myset"
)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the disks, keys, vaults, space, jobs and alarms of this host
    Status(status::StatusArgs),
    /// Watch what all attached disks of this host do: a live table, or plain text
    Top(top::TopArgs),
    /// Show and change from when on something is an alarm
    Alarm(alarm::AlarmArgs),
    /// Manage key vaults, keys and access policies
    Keyvault(keyvault::KeyvaultArgs),
    /// Manage disk encryption sets: the key that protects disks, and the identity that uses it
    DiskEncryptionSet(des::DesArgs),
    /// Manage the identities of clients of a served key vault
    Identity(identity::IdentityArgs),
    /// Grant and revoke roles of Azure's management API
    Role(role::RoleArgs),
    /// Put locks on resources, so that nobody deletes or changes them by mistake
    Lock(lock::LockArgs),
    /// Serve Azure's management API, the key vaults and tokens over HTTPS, until SIGTERM
    #[command(after_help = "Example:
  sealdisk identity create admin --secret-file admin.secret
  sealdisk role assignment create --assignee admin --role Owner
  sealdisk serve --listen 127.0.0.1:8443

docs/azure.md tells how `az` is pointed at it. `keyvault serve` is the same without the management API.")]
    Serve(serve::ServeApiArgs),
    /// List, verify, export and archive audit logs
    Audit(audit::AuditArgs),
    /// Back up, verify and restore everything but the disks
    Backup(backup::BackupArgs),
    /// Rebuild the catalog of vaults, disk encryption sets and disks
    Catalog(catalog::CatalogArgs),
    /// Manage encrypted disks
    Disk(disk::DiskArgs),
    /// Manage snapshots of disks
    Snapshot(snapshot::SnapshotArgs),
    /// Manage images for instant clones
    Image(image::ImageArgs),
    /// Serve a disk to a virtual machine over vhost-user
    Attach(attach::AttachArgs),
    /// Serve the queues of one disk; started by `attach`
    #[command(hide = true)]
    DataPlane(attach::DataPlaneArgs),
    /// Start data planes of one disk; started by `attach`
    #[command(hide = true)]
    DataPlaneLauncher(attach::LauncherArgs),
    /// Do the I/O of one disk over a network; started by others
    #[command(hide = true)]
    StoreProcess(store_process::StoreProcessArgs),
    /// Start store processes; started by others
    #[command(hide = true)]
    StoreProcessLauncher(store_process::StoreLauncherArgs),
    /// Tell what this program reads of an attach process; asked before it takes over from one
    #[command(hide = true)]
    AttachVersions,
    /// Go on as an attach process; executed by one
    #[command(hide = true)]
    ContinueAttach(attach::ContinueArgs),
    /// Tell programs and webhooks of the events that are read; started by others
    #[command(hide = true)]
    EventNotifier(event_notifier::NotifierArgs),
    /// Send the traces that are read; started by others
    #[command(hide = true)]
    TraceExporter,
    /// Have attached disks served by another version of this program, without a pause for their guests
    Upgrade(upgrade::UpgradeArgs),
    /// Have a disk attached by systemd, at the start of the host or when its VMM connects
    Enable(units::EnableArgs),
    /// Have a disk attached by systemd no more
    Disable(units::DisableArgs),
    /// Check that this host has what disks need, and say what to do where it has not
    Doctor(doctor::DoctorArgs),
    /// Tell how a process can be confined on this host; started by `doctor`
    #[command(hide = true)]
    CheckConfinement,
    /// Print the version, what encrypts, and what this program runs on
    Version(version::VersionArgs),
    /// Export metrics of disks, keys and vaults to Prometheus
    Metrics(metrics::MetricsArgs),
    /// Show what disks, keys and vaults do in a browser, read-only
    Dashboard(dashboard::DashboardArgs),
    /// Print the completion script of a shell
    Completions(completions::CompletionsArgs),
    /// Write a man page for each command; asked by scripts/package
    #[command(hide = true)]
    Manpages(manpages::ManpagesArgs),
    /// Write the pages of the book about commands, into docs/reference
    #[command(hide = true)]
    Reference(reference::ReferenceArgs),
}

/// Parses the arguments and runs one command.
pub fn main() -> ExitCode {
    let status = run();
    traces::finish();
    status
}

fn run() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if attach::wants_capabilities(&arguments) {
        return match attach::print_capabilities(&Output::new(OutputFormat::Json, None)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => ExitCode::from(error.status),
        };
    }
    if arguments.len() <= 1 {
        // As `az` alone does. A closed stdout leaves nobody to tell.
        let _ = Cli::command().print_help();
        return ExitCode::SUCCESS;
    }
    let arguments = match arm_ids::by_name(Cli::command(), arguments.clone()) {
        Ok(arguments) => arguments,
        Err(error) => {
            Output::new(format_of_errors(&arguments), None).error(&error);
            return ExitCode::from(error.status);
        }
    };
    let (cli, traced) = match parse(&arguments) {
        Ok(parsed) => parsed,
        Err(error) => return refuse(error, &arguments),
    };
    logging::start(
        cli.global.verbose,
        cli.global.log_format,
        is_confined(&cli.command),
    );
    // Nothing that the launcher does has to do with keys.
    if !matches!(
        cli.command,
        Command::DataPlaneLauncher(_) | Command::StoreProcessLauncher(_)
    ) {
        log::info!("sealdisk {}", *VERSION);
    }
    if let Some(name) = cli.global.host_name {
        name_host(name);
    }
    let context = Context {
        output: Output::new(cli.global.output, cli.global.query),
        runtime_dir: cli.global.runtime_dir,
        state_dir: cli.global.state_dir,
        catalog: cli.global.catalog,
    };
    // These are confined by now: they can look at no file, and have nothing to tell anybody.
    let is_confined = is_confined(&cli.command);
    let traced = traced.filter(|_| !is_confined);
    let span = traced.map_or_else(Span::none, Traced::begin);
    let entered = span.enter();
    let done = harden_process()
        .map_err(|e| CliError::new("Hardening", e.to_string()))
        .and_then(|()| require_module().map_err(|e| CliError::new("Module", e.to_string())))
        .and_then(|()| dispatch(&context, cli.command));
    drop(entered);
    match span.came_to(done, |error| &error.code) {
        Ok(()) if is_confined => ExitCode::SUCCESS,
        Ok(()) => {
            let said = context
                .state_dir()
                .ok()
                .and_then(|dir| platform_notice(&dir));
            if let Some(said) = said {
                context.output.note(&said);
            }
            ExitCode::SUCCESS
        }
        Err(mut error) => {
            similar::suggest(&context, &mut error);
            context.output.error(&error);
            ExitCode::from(error.status)
        }
    }
}

fn dispatch(context: &Context, command: Command) -> Result<(), CliError> {
    match command {
        Command::Status(args) => status::run(context, &args),
        Command::Top(args) => top::run(context, &args),
        Command::Alarm(args) => alarm::run(context, args),
        Command::EventNotifier(args) => event_notifier::run(&args),
        Command::Keyvault(args) => keyvault::run(context, args),
        Command::DiskEncryptionSet(args) => des::run(context, args),
        Command::Identity(args) => identity::run(context, args),
        Command::Role(args) => role::run(context, args),
        Command::Lock(args) => lock::run(context, args),
        Command::Serve(args) => serve::run(context, args),
        Command::Audit(args) => audit::run(context, args),
        Command::Backup(args) => backup::run(context, args),
        Command::Catalog(args) => catalog::run(context, &args),
        Command::Disk(args) => disk::run(context, args),
        Command::Snapshot(args) => snapshot::run(context, args),
        Command::Image(args) => image::run(context, args),
        Command::Attach(args) => attach::run(context, args),
        Command::DataPlane(args) => attach::run_data_plane(&args),
        Command::DataPlaneLauncher(args) => attach::run_launcher(args),
        Command::StoreProcess(args) => store_process::run(&args),
        Command::StoreProcessLauncher(args) => store_process::launch(args),
        Command::AttachVersions => attach::tell_versions(context),
        Command::ContinueAttach(args) => attach::continue_attach(context, &args),
        Command::TraceExporter => tracing::send_on(),
        Command::Upgrade(args) => upgrade::run(context, args),
        Command::Enable(args) => units::enable(context, args),
        Command::Disable(args) => units::disable(context, args),
        Command::Manpages(args) => manpages::run(&args, Cli::command()),
        Command::Reference(args) => reference::run(&args, Cli::command()),
        Command::Doctor(_) => doctor::run(context),
        Command::CheckConfinement => doctor::tell_confinement(|said| context.output.text(said)),
        Command::Version(_) => version::run(context),
        Command::Metrics(args) => metrics::run(context, args),
        Command::Dashboard(args) => dashboard::run(context, args),
        Command::Completions(args) => completions::run(context, &args, &Cli::command()),
    }
}

fn parse(arguments: &[OsString]) -> Result<(Cli, Option<Traced>), clap::Error> {
    let parsed = |commands: clap::Command| {
        let arguments = named::positional(named::with_option(commands.clone()), arguments)?;
        let matches = commands.try_get_matches_from(arguments)?;
        Ok((Cli::from_arg_matches(&matches)?, Traced::of(&matches)))
    };
    parsed(Cli::command()).map_err(|error| {
        // The line of usage of an error has all options that have a value, those from the environment
        // too, as if they had to be given: it is made without them.
        match parsed(usage::without_environment(Cli::command())) {
            Err(without) if usage::says_more(&without, &error) => without,
            _ => error,
        }
    })
}

/// Prints help and version as asked, and arguments that make no sense as an error of status 2.
fn refuse(mut error: clap::Error, arguments: &[OsString]) -> ExitCode {
    usage::hide(&mut error, &Cli::command());
    let in_full = |argument: &OsString| argument == "--version";
    if error.kind() == ErrorKind::DisplayVersion && arguments.iter().any(in_full) {
        // A closed stdout leaves nobody to tell.
        let _ = Output::new(OutputFormat::Table, None).text(&version::text());
        return ExitCode::SUCCESS;
    }
    if error.use_stderr() && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let message = usage::one_line(&error.render().to_string());
        let message = usage::as_typed(&message, arguments, &Cli::command());
        Output::new(format_of_errors(arguments), None).error(&CliError::usage(message));
    } else {
        // A closed stdout or stderr leaves nobody to tell.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// The form of errors while the arguments are not taken apart.
fn format_of_errors(arguments: &[OsString]) -> OutputFormat {
    match usage::wants_json(arguments) {
        true => OutputFormat::Json,
        false => OutputFormat::Table,
    }
}

/// Whether the process gives everything up but what it was started with.
fn is_confined(command: &Command) -> bool {
    matches!(
        command,
        Command::DataPlane(_)
            | Command::DataPlaneLauncher(_)
            | Command::StoreProcess(_)
            | Command::StoreProcessLauncher(_)
            | Command::EventNotifier(_)
            | Command::TraceExporter
            | Command::CheckConfinement
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_definitions_are_consistent() {
        Cli::command().debug_assert();
        named::with_option(Cli::command()).debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|c| !c.is_hide_set()) {
                let path = format!("{path} {}", sub.get_name());
                if sub.get_subcommands().next().is_none() {
                    let help = sub.get_after_help().map(ToString::to_string);
                    let has_example = help.is_some_and(|h| h.contains(&path));
                    assert!(has_example, "`{path}` has no example in its help");
                }
                check(sub, &path);
            }
        }
        check(&Cli::command(), "sealdisk");
    }

    #[test]
    fn a_usage_error_is_one_line_that_names_what_is_missing() {
        let parsed = Cli::try_parse_from(["sealdisk", "keyvault", "key", "create", "k"]);
        let line = usage::one_line(&parsed.err().unwrap().render().to_string());
        assert!(
            line.contains("not provided: --vault-name <VAULT_NAME>; usage: sealdisk"),
            "{line}"
        );
        assert!(!line.contains('\n'));
        let parsed = Cli::try_parse_from(["sealdisk", "keyvault", "lits"]);
        let line = usage::one_line(&parsed.err().unwrap().render().to_string());
        assert!(
            line.starts_with("unrecognized subcommand 'lits'; tip: "),
            "{line}"
        );
    }
}
