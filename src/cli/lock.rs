//! `sealdisk lock`: what nobody may delete or change until the lock is off.

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use time::OffsetDateTime;

use super::output::time_cell;
use super::{CliError, Context, Tabular};
use arm::locks;
use installation::Installation;
use installation::catalog::{CatalogError, Kind, Lock, LockLevel, LockRecord, LockTarget, Touch};

/// Arguments of `lock`.
#[derive(Args)]
pub struct LockArgs {
    #[command(subcommand)]
    command: LockCommand,
}

#[derive(Subcommand)]
enum LockCommand {
    /// Put a lock on a resource, a resource group or everything, or change the one of that name
    #[command(after_help = "Examples:
  sealdisk lock create keep --lock-type CanNotDelete --resource disk:mydisk
  sealdisk lock create frozen --lock-type ReadOnly --resource-group web --notes 'audit of March'

It refuses every deletion and, with ReadOnly, every change, over Azure's management API and by this program. What
attached disks read and write, and what happens with keys, goes on.")]
    Create(CreateArgs),
    /// List the locks
    #[command(after_help = "Example:\n  sealdisk lock list -o json")]
    List,
    /// Take a lock off
    #[command(after_help = "Example:\n  sealdisk lock delete keep --resource disk:mydisk --yes")]
    Delete(DeleteArgs),
}

/// What a lock is on.
#[derive(Args)]
struct PlaceArgs {
    /// The resource: its kind and name, as disk:mydisk, snapshot:, image:, disk-encryption-set:, vault: or identity:,
    /// or its id [default: the whole subscription]
    #[arg(long, value_name = "KIND:NAME|ID", conflicts_with = "resource_group")]
    resource: Option<String>,
    /// The resource group, with all that is in it
    #[arg(long, short = 'g', value_name = "NAME")]
    resource_group: Option<String>,
}

#[derive(Args)]
struct CreateArgs {
    /// The name of the lock
    name: String,
    /// What it refuses
    #[arg(long, short = 't', value_enum)]
    lock_type: Level,
    #[command(flatten)]
    place: PlaceArgs,
    /// What is to be known about it
    #[arg(long, value_name = "TEXT")]
    notes: Option<String>,
}

#[derive(Args)]
struct DeleteArgs {
    /// The name of the lock
    name: String,
    #[command(flatten)]
    place: PlaceArgs,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

/// What a lock refuses.
#[derive(Clone, Copy, ValueEnum)]
enum Level {
    /// Deletions
    #[value(name = "CanNotDelete")]
    CanNotDelete,
    /// Changes, too
    #[value(name = "ReadOnly")]
    ReadOnly,
}

/// A lock, with the field names of Azure's management API.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LockView {
    name: String,
    level: &'static str,
    notes: Option<String>,
    resource_group: Option<String>,
    scope: String,
    #[serde(with = "time::serde::rfc3339")]
    created: OffsetDateTime,
    #[serde(skip)]
    place: String,
}

impl LockView {
    fn new(installation: &Installation, lock: Lock) -> Self {
        Self {
            scope: locks::scope_of(installation, &lock),
            place: place(&lock.record.target),
            resource_group: lock.group,
            name: lock.record.name,
            level: lock.record.level.as_str(),
            notes: lock.record.notes,
            created: lock.record.created.at,
        }
    }
}

impl Tabular for LockView {
    const COLUMNS: &'static [&'static str] = &["name", "level", "on", "notes", "created"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.level.into(),
            self.place.clone(),
            self.notes.clone().unwrap_or_default(),
            time_cell(Some(self.created)),
        ]
    }
}

/// What a lock is on, as it is given.
fn place(target: &LockTarget) -> String {
    match target {
        LockTarget::Subscription => "subscription".into(),
        LockTarget::Group(group) => format!("group:{group}"),
        LockTarget::Resource(kind, name) => format!("{}:{name}", kind.as_str()),
    }
}

pub(super) fn run(context: &Context, args: LockArgs) -> Result<(), CliError> {
    let installation = context.installation()?;
    match args.command {
        LockCommand::Create(args) => create(context, &installation, args),
        LockCommand::List => {
            let all = installation.catalog().locks()?.into_iter();
            let views: Vec<LockView> = all.map(|lock| LockView::new(&installation, lock)).collect();
            context.output.list(&views)
        }
        LockCommand::Delete(args) => delete(context, &installation, &args),
    }
}

fn create(
    context: &Context,
    installation: &Installation,
    args: CreateArgs,
) -> Result<(), CliError> {
    let target = target(installation, &args.place)?;
    if let LockTarget::Resource(kind, name) = &target {
        let found = locks::find(installation, *kind, name)?;
        if found.as_ref() != Some(name) {
            let (kind, name) = (*kind, name.clone());
            return Err(CatalogError::NotFound { kind, name }.into());
        }
    }
    let operator = installation.operator();
    let record = LockRecord {
        name: args.name,
        target,
        level: match args.lock_type {
            Level::CanNotDelete => LockLevel::CanNotDelete,
            Level::ReadOnly => LockLevel::ReadOnly,
        },
        notes: args.notes,
        created: Touch {
            at: OffsetDateTime::now_utc(),
            by: operator.object_id,
        },
    };
    locks::put(installation, &operator, &record)?;
    let all = installation.catalog().locks()?.into_iter();
    let mut made = all.filter(|lock| {
        lock.record.target == record.target && lock.record.name.eq_ignore_ascii_case(&record.name)
    });
    match made.next() {
        Some(lock) => context.output.show(&LockView::new(installation, lock)),
        // Somebody else has taken it off meanwhile.
        None => Ok(()),
    }
}

fn delete(
    context: &Context,
    installation: &Installation,
    args: &DeleteArgs,
) -> Result<(), CliError> {
    let target = target(installation, &args.place)?;
    let (name, on) = (&args.name, place(&target));
    let question = format!("Take the lock '{name}' off {on}?");
    context.output.confirm(&question, args.yes)?;
    match locks::delete(installation, &installation.operator(), &target, name)? {
        true => Ok(()),
        false => Err(CliError::new(
            "ResourceNotFound",
            format!(
                "there is no lock '{name}' on {on}; `sealdisk lock list` shows those that exist"
            ),
        )),
    }
}

/// What is meant. A lock can be taken off what is gone, too.
fn target(installation: &Installation, args: &PlaceArgs) -> Result<LockTarget, CliError> {
    if let Some(group) = &args.resource_group {
        return match installation.catalog().group(group)? {
            Some(group) => Ok(LockTarget::Group(group.name)),
            None => Err(CatalogError::NotFound {
                kind: Kind::Group,
                name: group.clone(),
            }
            .into()),
        };
    }
    let Some(resource) = &args.resource else {
        return Ok(LockTarget::Subscription);
    };
    if resource.starts_with('/') {
        return Ok(locks::target(installation, resource)?);
    }
    let named = resource.split_once(':').and_then(|(kind, name)| {
        let kind = Kind::from_text(kind).filter(|kind| locks::are_on(*kind))?;
        Some(LockTarget::Resource(kind, name.to_owned()))
    });
    named.ok_or_else(|| {
        CliError::usage(format!(
            "'{resource}' names no resource: give its id, or its kind and name, as in disk:mydisk, snapshot:, image:, \
             disk-encryption-set:, vault: or identity:"
        ))
    })
}
