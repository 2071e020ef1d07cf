//! `sealdisk catalog`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use super::{CliError, Context};
use crate::control::{Installation, Rebuilt, RebuiltSet};
use crate::envelope::ResourceKind;
use crate::vault::{KeyUrl, Permissions};

/// Arguments of `catalog`.
#[derive(Args)]
pub struct CatalogArgs {
    #[command(subcommand)]
    command: CatalogCommand,
}

#[derive(Subcommand)]
enum CatalogCommand {
    /// Add what is there and not in the catalog, which is made when it is gone
    #[command(after_help = "Example:
  sealdisk catalog rebuild
  sealdisk catalog rebuild --data-dir /srv/disks --data-dir /mnt/fast/web

Vaults, disk encryption sets and identities come from STATE_DIR/catalog-copy.json, with the ids that
access policies name; vaults by their directories; disks, snapshots and images by their headers. Of a
set that only a header names the identity is new: it is printed with the command that grants it.")]
    Rebuild(RebuildArgs),
}

#[derive(Args)]
struct RebuildArgs {
    /// A directory with disks, or of one disk, besides those in the state directory
    #[arg(long, value_name = "DIR")]
    data_dir: Vec<PathBuf>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RebuiltView {
    identities_kept: bool,
    vaults: Vec<String>,
    disk_encryption_sets: Vec<SetView>,
    resources: Vec<ResourceView>,
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

pub(super) fn run(context: &Context, args: &CatalogArgs) -> Result<(), CliError> {
    let CatalogCommand::Rebuild(args) = &args.command;
    let (_, rebuilt) = Installation::rebuild(&context.state_dir()?, &args.data_dir)?;
    let view = RebuiltView::from(rebuilt);
    for set in &view.disk_encryption_sets {
        context.output.note(&format!(
            "note: the identity of the disk encryption set '{}' is new: `{}`",
            set.name, set.command
        ));
    }
    context.output.show(&view)?;
    match view.problems.as_slice() {
        [] => Ok(()),
        problems => Err(CliError::new(
            "CatalogIncomplete",
            format!("not everything was brought back: {}", problems.join("; ")),
        )),
    }
}
