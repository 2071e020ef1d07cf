//! `sealdisk host`: the hosts that share the catalog, and what each of them has.

use clap::{Args, Subcommand};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::output::time_cell;
use super::{CliError, Context, Tabular};
use installation::catalog::{CatalogError, HostRecord};
use installation::{Installation, name_of_host, runtime_dir, this_host, this_host_id};

/// Arguments of `host`.
#[derive(Args)]
pub struct HostArgs {
    #[command(subcommand)]
    command: HostCommand,
}

#[derive(Subcommand)]
enum HostCommand {
    /// List the hosts that share the catalog
    #[command(after_help = "Example:
  sealdisk host list

A host is Alive while an attach or a server of it renews its lease, every 5 seconds. One that is Silent
has had none for 15 seconds: it has nothing attached, hangs, is cut off from the database, or is gone.")]
    List,
    /// Show a host and the disks that it has
    #[command(after_help = "Example:
  sealdisk host show node1 -o json")]
    Show {
        /// The host: its name or id
        name: String,
    },
    /// Evict a host that is gone for good: other hosts may attach its disks from then on
    #[command(after_help = "Example:
  sealdisk host evict node1 --host-is-off

Whoever attaches one of its disks takes it over then, as `disk takeover` does: what was written and not
flushed on the host that is gone is lost. A host whose lease has not ended is not evicted. One that
comes back is let in again, and ends what others have taken from it.")]
    Evict(EvictArgs),
}

#[derive(Args)]
struct EvictArgs {
    /// The host: its name or id
    name: String,
    /// It is switched off, or cut off from all storage for good
    #[arg(long)]
    host_is_off: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

/// A host.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HostView {
    name: String,
    id: String,
    /// `Alive`, `Silent` or `Evicted`.
    state: &'static str,
    this_host: bool,
    /// How many disks it has, or has not let go of.
    disks: u64,
    version: Option<String>,
    /// Since when it has its lease without a break.
    #[serde(with = "time::serde::rfc3339::option")]
    since: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    last_seen: Option<OffsetDateTime>,
}

impl HostView {
    fn of(record: HostRecord) -> Self {
        Self {
            state: match (record.is_evicted, record.lives) {
                (true, _) => "Evicted",
                (false, true) => "Alive",
                (false, false) => "Silent",
            },
            this_host: record.id == this_host_id(),
            name: record.name,
            id: record.id,
            disks: record.disks,
            version: Some(record.version),
            since: Some(record.since),
            last_seen: Some(record.seen),
        }
    }

    /// This host, whose own the catalog is.
    fn this(disks: usize) -> Self {
        Self {
            name: name_of_host(this_host()).into(),
            id: this_host_id().into(),
            state: "Alive",
            this_host: true,
            disks: u64::try_from(disks).unwrap_or(u64::MAX),
            version: Some(env!("CARGO_PKG_VERSION").into()),
            since: None,
            last_seen: None,
        }
    }

    fn is_called(&self, name: &str) -> bool {
        self.name == name || self.id == name
    }
}

impl Tabular for HostView {
    const COLUMNS: &'static [&'static str] = &[
        "name",
        "state",
        "disks",
        "this host",
        "version",
        "last seen",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.state.into(),
            self.disks.to_string(),
            if self.this_host { "yes" } else { "no" }.into(),
            self.version.clone().unwrap_or_default(),
            time_cell(self.last_seen),
        ]
    }
}

/// A host with its disks.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HostWithDisks {
    #[serde(flatten)]
    host: HostView,
    attachments: Vec<AttachmentOfHost>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AttachmentOfHost {
    /// The disk's name; nothing of one that the catalog does not have.
    disk: Option<String>,
    disk_id: Uuid,
    state: &'static str,
    epoch: Option<i64>,
    #[serde(with = "time::serde::rfc3339::option")]
    since: Option<OffsetDateTime>,
}

/// What came of an eviction.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EvictedView {
    name: String,
    id: String,
    /// Disks that it had not let go of.
    disks: u64,
}

pub(super) fn run(context: &Context, args: HostArgs) -> Result<(), CliError> {
    let installation = context.installation()?;
    match args.command {
        HostCommand::List => {
            let hosts = match installation.catalog().is_shared() {
                true => installation.catalog().hosts()?,
                false => {
                    return context
                        .output
                        .list(&[HostView::this(attached(context).len())]);
                }
            };
            let views: Vec<_> = hosts.into_iter().map(HostView::of).collect();
            context.output.list(&views)
        }
        HostCommand::Show { name } => show(context, &installation, &name),
        HostCommand::Evict(args) => evict(context, &installation, &args),
    }
}

/// The disks that are attached with this runtime directory.
fn attached(context: &Context) -> Vec<Uuid> {
    let runtime_dir = runtime_dir(context.runtime_dir.as_deref());
    let here = attach::attached_here(&runtime_dir).unwrap_or_default();
    here.into_iter().map(|here| here.disk).collect()
}

/// The one host of that name or id.
fn find(installation: &Installation, name: &str) -> Result<HostRecord, CliError> {
    let mut found = installation.catalog().hosts_called(name)?;
    match (found.pop(), found.as_slice()) {
        (None, _) => Err(CatalogError::NoHost { name: name.into() }.into()),
        (Some(host), []) => Ok(host),
        (Some(host), others) => {
            let ids: Vec<_> = others.iter().chain([&host]).map(|host| &*host.id).collect();
            Err(CliError::usage(format!(
                "several hosts are called '{name}': give the id of one, {}",
                ids.join(" or ")
            )))
        }
    }
}

fn show(context: &Context, installation: &Installation, name: &str) -> Result<(), CliError> {
    let catalog = installation.catalog();
    let (host, mut attachments) = match catalog.is_shared() {
        true => {
            let host = find(installation, name)?;
            let found = catalog.attachments(Some(&host.id))?.into_iter();
            let attachments = found.map(|found| AttachmentOfHost {
                disk: None,
                disk_id: found.disk,
                state: found.state.as_str(),
                epoch: Some(found.epoch),
                since: Some(found.since),
            });
            (HostView::of(host), attachments.collect::<Vec<_>>())
        }
        false => {
            let here = attached(context);
            let host = HostView::this(here.len());
            if !host.is_called(name) {
                return Err(CatalogError::NoHost { name: name.into() }.into());
            }
            let attachments = here.into_iter().map(|disk_id| AttachmentOfHost {
                disk: None,
                disk_id,
                state: "open",
                epoch: None,
                since: None,
            });
            (host, attachments.collect())
        }
    };
    let ids: Vec<_> = attachments.iter().map(|of| of.disk_id).collect();
    let rows = catalog.resources_with_ids(&ids)?;
    for of in &mut attachments {
        let row = rows.iter().find(|row| row.record.id == of.disk_id);
        of.disk = row.map(|row| row.record.name.clone());
    }
    context.output.show(&HostWithDisks { host, attachments })
}

fn evict(context: &Context, installation: &Installation, args: &EvictArgs) -> Result<(), CliError> {
    let refuse = |why: &str| Err(CliError::new("OperationNotAllowed", why));
    if !installation.catalog().is_shared() {
        return refuse(
            "the catalog of this installation is this host's own: there is no other host to evict",
        );
    }
    let host = find(installation, &args.name)?;
    if host.id == this_host_id() {
        return refuse("this host is not evicted by itself: do it on another one when it is off");
    }
    if !args.host_is_off {
        return Err(CliError::new(
            "HostNotFenced",
            format!(
                "the host {} may only hang, and go on: switch it off, or cut it off from all storage for good, and say so \
                 with --host-is-off; what its guests have written and not flushed is lost then",
                host.name
            ),
        ));
    }
    let question = format!(
        "The host {} will be evicted, and what was not flushed on its {} disks is lost. Continue?",
        host.name, host.disks
    );
    context.output.confirm(&question, args.yes)?;
    let disks = installation.catalog().evict_host(&host.id)?;
    context.output.show(&EvictedView {
        name: host.name,
        id: host.id,
        disks,
    })
}
