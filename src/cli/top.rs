//! `sealdisk top`: what all attached disks of this host do.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use log::LevelFilter;
use uuid::Uuid;

use super::progress::cancel_on_signals;
use super::{CliError, Context};
use alarms::host_name;
use installation::{Installation, runtime_dir, this_host_id};
use top::{Column, Options, TopError, View, iterations, run as run_live, table_text};

/// Arguments of `top`.
#[derive(Args)]
#[command(after_help = "Examples:
  sealdisk top
  sealdisk top --sort p99 --filter web
  sealdisk top -b -n 1
  sealdisk top -b -n 1 -o json | jq -r '.disks[] | select(.standing != \"served\") | .name'

Keys: up and down select a disk, Enter shows it by itself, < and > change the column that sorts, r turns the order,
/ filters, ? has all keys, q ends. Without colours in NO_COLOR and on terminals that have none; docs/top.md has more.")]
pub struct TopArgs {
    /// Seconds between two looks
    #[arg(long, short = 'd', value_name = "SECONDS", default_value = "2", value_parser = interval)]
    interval: Duration,
    /// The column by which disks are sorted
    #[arg(long, short, value_name = "COLUMN", default_value = "iops", value_parser = column())]
    sort: Column,
    /// Sort the other way round
    #[arg(long, short)]
    reverse: bool,
    /// Show only disks with this in their name, their key's URL, their state or their job
    #[arg(
        long,
        short,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    filter: String,
    /// Print plain text, or what -o says, for scripts and logs
    #[arg(long, short)]
    batch: bool,
    /// Print as often, and end [default: until a signal]
    #[arg(long, short = 'n', value_name = "N", requires = "batch",
          value_parser = clap::value_parser!(u64).range(1..))]
    iterations: Option<u64>,
}

/// The columns by their names, which shells complete.
fn column() -> impl TypedValueParser<Value = Column> {
    let names = PossibleValuesParser::new(Column::ALL.map(Column::name));
    names.try_map(|name| name.parse::<Column>())
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds is needed")?;
    match (0.5..=60.0).contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err("0.5 to 60 seconds are possible".into()),
    }
}

pub(super) fn run(context: &Context, args: &TopArgs) -> Result<(), CliError> {
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let options = Options {
        host: host_name(),
        names: names(context, &runtime_dir),
        runtime_dir,
        interval: args.interval,
        view: View {
            sort: args.sort,
            reversed: args.reverse,
            filter: args.filter.clone(),
        },
    };
    warn_of_other_directory(context, &options.runtime_dir)?;
    if args.batch {
        return batch(context, &options, args.iterations);
    }
    if !context.output.is_for_people() {
        return Err(CliError::usage(
            "-o and --query are for what is printed: they need -b (`sealdisk top -b -n 1`: once)",
        ));
    }
    // A line of the log would be written across the table.
    log::set_max_level(LevelFilter::Off);
    Ok(run_live(&options)?)
}

/// Nobody is to take an empty table for a host without attached disks whose disks are attached with another runtime
/// directory: where none is attached with this one, and some are, that is said; where there is no such directory, it is
/// an error.
fn warn_of_other_directory(context: &Context, runtime_dir: &Path) -> Result<(), CliError> {
    // What cannot be read is an error of the table's own.
    let here = attach::attached_here(runtime_dir);
    if !here.is_ok_and(|here| here.is_empty()) {
        return Ok(());
    }
    let attached = context
        .existing_installation()
        .and_then(|installation| attached_by_catalog(&installation));
    let attached = attached.unwrap_or_default();
    let dir = runtime_dir.display();
    let said = match (attached, runtime_dir.exists()) {
        (0, true) => return Ok(()),
        // Those of another user have another one.
        (0, false) => {
            format!("no disk was attached with the runtime directory {dir} yet: there is none")
        }
        (1, _) => format!("a disk is attached, but none with the runtime directory {dir}"),
        (many, _) => {
            format!("{many} disks are attached, but none with the runtime directory {dir}")
        }
    };
    let said = format!("{said}; --runtime-dir names another one");
    if attached > 0 && !runtime_dir.exists() {
        return Err(CliError::new("RuntimeDirUnreadable", said));
    }
    context.output.note(&format!("note: {said}"));
    Ok(())
}

/// How many disks this host has attached, by the catalog that it shares, or by the headers of all disks in one of its own.
fn attached_by_catalog(installation: &Installation) -> Result<usize, CliError> {
    let catalog = installation.catalog();
    if catalog.is_shared() {
        return Ok(catalog.attachments(Some(this_host_id()))?.len());
    }
    let seen = disks::look(installation)?;
    Ok(seen.iter().filter(|disk| disk.is_attached()).count())
}

fn batch(context: &Context, options: &Options, times: Option<u64>) -> Result<(), CliError> {
    let stopped = cancel_on_signals()?;
    let is_over = || stopped.check().is_err();
    let printed = iterations(options, times, is_over, |iteration| {
        let printed = context.output.report(&table_text(iteration), iteration);
        printed.map_err(Stopped::Output)
    });
    match printed {
        // Nobody reads any more.
        Err(Stopped::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(Stopped::Output(error)) => Err(CliError::new("OutputError", error.to_string())),
        Err(Stopped::Top(error)) => Err(error.into()),
        Ok(()) => Ok(()),
    }
}

/// Why no more is printed.
enum Stopped {
    Top(TopError),
    Output(std::io::Error),
}

impl From<TopError> for Stopped {
    fn from(error: TopError) -> Self {
        Self::Top(error)
    }
}

/// The names of disks by their ids, if there is an installation to ask. Where hosts share its catalog, of those that are
/// attached here.
fn names(context: &Context, runtime_dir: &Path) -> HashMap<Uuid, String> {
    let known = context.existing_installation().and_then(|installation| {
        let catalog = installation.catalog();
        if !catalog.is_shared() {
            return Ok(catalog.disks()?);
        }
        let here = attach::attached_here(runtime_dir).unwrap_or_default();
        let here: Vec<_> = here.iter().map(|here| here.disk).collect();
        Ok(catalog.resources_with_ids(&here)?)
    });
    let known = known.unwrap_or_else(|error| {
        log::debug!("names of disks are not known: {}", error.message);
        Vec::new()
    });
    let named = known
        .into_iter()
        .map(|disk| (disk.record.id, disk.record.name));
    named.collect()
}

impl From<TopError> for CliError {
    fn from(error: TopError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
