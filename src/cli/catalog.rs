//! `sealdisk catalog`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use super::global::catalog_at;
use super::output::time_cell;
use super::{CliError, Context, Tabular};
use disks::{Rebuilt, RebuiltSet};
use installation::catalog::{DepartedRecord, Departure};
use installation::envelope::ResourceKind;
use installation::migrate::{self, MigrateError, MovedTable};
use installation::{CatalogAt, Place};
use vault::{KeyUrl, Permissions, moment};

/// Arguments of `catalog`.
#[derive(Args)]
pub struct CatalogArgs {
    #[command(subcommand)]
    command: CatalogCommand,
}

#[derive(Subcommand)]
enum CatalogCommand {
    /// Rebuild the catalog: create it if it is lost, and add what is missing from it
    #[command(after_help = "Example:
  sealdisk catalog rebuild
  sealdisk catalog rebuild --data-dir /srv/disks --data-dir /mnt/fast/web --all-directories-named

Connected vaults, disk encryption sets and identities come from STATE_DIR/catalog-copy.json, with
the ids that access policies name; other vaults from their directories; disks, snapshots and images
from their headers. A set that only a header names gets a new identity, and the command prints how
to grant it the key. A catalog on a server is not created: restore the server's backup, and rebuild
then adds what was created since.

After `backup restore` the catalog does not know the disks that were created since the backup, and
after a loss it does not know what the rebuild did not find, such as snapshots and images that no
vault's log names. No key version is reported as safe to disable until a rebuild with
--all-directories-named has had no problems: use it when --data-dir names every directory of disks
outside of the state directory. Directories in those are not searched: name each that has disks.

A vault that was restored, or created in the place of a lost one, refuses nothing for good that it
does not know, so that running disks are served for their grace period. The same rebuild ends that
if the vault lacks no key and no policy that a known resource needs, and tells what it lacks if not.")]
    Rebuild(RebuildArgs),
    /// List resources that left the catalog although their headers may still exist
    #[command(after_help = "Example:
  sealdisk catalog list-departed

These are disks that were unregistered, resources that were deleted without their header, and
resources that a vault's log names but `catalog rebuild` did not find. `key what-if` and
`show-usage` do not report their key versions as safe to disable until you register them again, or
forget them with `catalog forget`.")]
    ListDeparted,
    /// Move the catalog of the state directory to a PostgreSQL server, or go on with that
    #[command(after_help = "Example:
  sealdisk catalog migrate --to 'postgres://sealdisk@db1.example/sealdisk?passfile=/etc/sealdisk/pgpass'

The database, or the schema in it, is to be empty. Detach all disks and stop what serves vaults, metrics and the
dashboard before, and give them --catalog, or SEALDISK_CATALOG, with the same address afterwards: the file in the
state directory is not used any more. Rows and hashes of each table are compared. If the command is cut off,
nobody uses either until it has been run again; until it marks the file, that stays in use. An installation with
key vaults of its own is not moved. docs/fleet.md has all steps.")]
    Migrate(MigrateArgs),
    /// Confirm that a resource that left the catalog is gone, so that its key versions are not needed
    #[command(after_help = "Example:
  sealdisk catalog forget web1

This changes only the answers of `key what-if` and `show-usage`.")]
    Forget(ForgetArgs),
}

#[derive(Args)]
struct MigrateArgs {
    /// The database, as postgres://USER@HOST/DATABASE; a password is in a password file, never here
    #[arg(long, value_name = "URL")]
    to: String,
}

#[derive(Args)]
struct ForgetArgs {
    /// Its name, or its unique id if several had that name
    name: String,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

#[derive(Args)]
struct RebuildArgs {
    /// A directory of disks, or of one disk, outside of the state directory
    #[arg(long, value_name = "DIR")]
    data_dir: Vec<PathBuf>,
    /// Confirm that there are no disks outside of the state directory and the directories of --data-dir
    #[arg(long)]
    all_directories_named: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RebuiltView {
    identities_kept: bool,
    vaults: Vec<String>,
    disk_encryption_sets: Vec<SetView>,
    resources: Vec<ResourceView>,
    not_found: Vec<String>,
    problems: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SetView {
    name: String,
    key_url: String,
    principal_id: Option<Uuid>,
    command: String,
}

#[derive(Serialize)]
struct ResourceView {
    #[serde(rename = "type")]
    kind: ResourceKind,
    name: String,
    directory: PathBuf,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MigratedView {
    installation: Uuid,
    from: PathBuf,
    to: String,
    tables: Vec<MovedTableView>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MovedTableView {
    part: &'static str,
    table: String,
    rows: u64,
    sha256: String,
}

impl From<MovedTable> for MovedTableView {
    fn from(moved: MovedTable) -> Self {
        let MovedTable {
            part,
            table,
            rows,
            sha256,
        } = moved;
        Self {
            part,
            table,
            rows,
            sha256,
        }
    }
}

impl From<Rebuilt> for RebuiltView {
    fn from(rebuilt: Rebuilt) -> Self {
        Self {
            identities_kept: rebuilt.with_identities,
            vaults: rebuilt.vaults,
            disk_encryption_sets: rebuilt.sets.into_iter().map(SetView::from).collect(),
            resources: rebuilt
                .resources
                .into_iter()
                .map(|record| ResourceView {
                    kind: record.kind,
                    name: record.name,
                    directory: record.directory,
                })
                .collect(),
            not_found: rebuilt.not_found,
            problems: rebuilt.problems,
        }
    }
}

impl From<RebuiltSet> for SetView {
    fn from(set: RebuiltSet) -> Self {
        let vault = set.key_url.parse::<KeyUrl>().ok();
        let vault = vault.as_ref().and_then(KeyUrl::vault_name);
        let command = match (set.principal_id, vault) {
            (Some(id), Some(vault)) => format!(
                "sealdisk keyvault set-policy {vault} --object-id {id} --key-permissions {}",
                Permissions::for_disks().names().join(" ")
            ),
            _ => format!("sealdisk disk-encryption-set identity assign {}", set.name),
        };
        Self {
            name: set.name,
            key_url: set.key_url,
            principal_id: set.principal_id,
            command,
        }
    }
}

impl Tabular for DepartedRecord {
    const COLUMNS: &'static [&'static str] = &["type", "name", "id", "reason", "time", "directory"];

    fn cells(&self) -> Vec<String> {
        let reason = match self.reason {
            Departure::Unregistered => "unregistered",
            Departure::UnregisteredUnseen => "unregistered without its header",
            Departure::DeletedUnseen => "deleted without its header",
            Departure::NotFound => "not found by a rebuild",
        };
        vec![
            self.kind.to_string(),
            self.name.clone(),
            self.id.to_string(),
            reason.into(),
            time_cell(Some(self.time)),
            self.directory.clone(),
        ]
    }
}

pub(super) fn run(context: &Context, args: &CatalogArgs) -> Result<(), CliError> {
    match &args.command {
        CatalogCommand::Rebuild(args) => rebuild(context, args),
        CatalogCommand::ListDeparted => {
            let departed = context.installation()?.catalog().departed()?;
            context.output.list(&departed)
        }
        CatalogCommand::Migrate(args) => migrate(context, args),
        CatalogCommand::Forget(args) => forget(context, args),
    }
}

fn migrate(context: &Context, args: &MigrateArgs) -> Result<(), CliError> {
    let CatalogAt::Server(to) = catalog_at(Some(&args.to))? else {
        return Err(CliError::usage("--to names no database"));
    };
    // What is moved is in the state directory; a unit may have the new address already.
    let Place { state_dir, catalog } = context.place()?;
    if catalog.server().is_some_and(|given| *given != to) {
        return Err(CliError::usage(
            "--catalog, or SEALDISK_CATALOG, has another address than --to: what is moved is the catalog of --state-dir",
        ));
    }
    let migrated = migrate::migrate(&state_dir, &to, &disks::is_used)?;
    let is_new = !migrated.tables.is_empty();
    let view = MigratedView {
        installation: migrated.installation,
        from: migrated.from,
        to: to.to_string(),
        tables: migrated.tables.into_iter().map(Into::into).collect(),
    };
    context.output.note(match is_new {
        true => {
            "note: the catalog is on the server, and its file is not used any more: give each command and service of \
             this installation --catalog, or SEALDISK_CATALOG, with the address"
        }
        false => "note: the catalog was on the server before",
    });
    context.output.show(&view)
}

impl From<MigrateError> for CliError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Installation(error) => error.into(),
            error => Self::new(error.code(), error.to_string()),
        }
    }
}

fn forget(context: &Context, args: &ForgetArgs) -> Result<(), CliError> {
    let installation = context.installation()?;
    let (name, id) = (&args.name, args.name.parse::<Uuid>().ok());
    let mut departed = installation.catalog().departed()?;
    departed.retain(|record| record.name == *name || Some(record.id) == id);
    let [record] = departed.as_slice() else {
        let why = match departed.is_empty() {
            true => format!("nothing called '{name}' has left the catalog"),
            false => {
                format!("several things called '{name}' have left the catalog: give the id of one")
            }
        };
        return Err(CliError::new(
            "ResourceNotFound",
            format!("{why}; `sealdisk catalog list-departed` shows them"),
        ));
    };
    context.output.confirm(
        &format!(
            "Is the {} '{name}' gone for good? What still has its header cannot be read once its key is disabled.",
            record.kind
        ),
        args.yes,
    )?;
    Ok(disks::forget_departed(&installation, record)?)
}

fn rebuild(context: &Context, args: &RebuildArgs) -> Result<(), CliError> {
    let (_, rebuilt) = disks::rebuild(
        &context.place()?,
        &args.data_dir,
        args.all_directories_named,
    )?;
    let restored = rebuilt.restored;
    let lacking = rebuilt.lacking.clone();
    let view = RebuiltView::from(rebuilt);
    for set in &view.disk_encryption_sets {
        context.output.note(&format!(
            "note: the identity of the disk encryption set '{}' is new: `{}`",
            set.name, set.command
        ));
    }
    if !view.not_found.is_empty() {
        context.output.note(&format!(
            "note: the logs of the key vaults name resources that were not found: {}; give their directories \
             with --data-dir, or forget them with `sealdisk catalog forget`",
            view.not_found.join(", ")
        ));
    }
    for what in &lacking {
        context.output.note(&format!(
            "note: {what}: restore the key or grant it, or give up what needs it, and rebuild again; until then the vault \
             decides nothing about what it does not know"
        ));
    }
    if let Some(restored) = restored {
        let why = match restored.backup {
            Some(backup) => format!("restored from a backup of {}", moment(backup)),
            None => format!("lost and made again at {}", moment(restored.time)),
        };
        context.output.note(&format!(
            "note: the catalog was {why}, and no key is called safe to disable until a rebuild without problems has named \
             every directory of disks: give them with --data-dir, and --all-directories-named"
        ));
    }
    context.output.show(&view)?;
    match view.problems.as_slice() {
        [] => Ok(()),
        problems => Err(CliError::new(
            "CatalogIncomplete",
            format!(
                "the catalog was not rebuilt completely: {}",
                problems.join("; ")
            ),
        )),
    }
}
