//! `sealdisk keyvault delete`, `list-deleted`, `recover` and `purge`.

use clap::Args;
use serde::Serialize;
use time::OffsetDateTime;

use crate::cli::output::time_cell;
use crate::cli::{CliError, Context, Tabular};
use installation::{DeletedVault, Installation};

#[derive(Args)]
pub(super) struct NameArgs {
    /// The key vault
    pub(super) name: String,
}

#[derive(Args)]
pub(super) struct DeleteArgs {
    /// The key vault
    name: String,
    /// Delete it even if disks or disk encryption sets use its keys
    #[arg(long)]
    force: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

#[derive(Args)]
pub(super) struct PurgeArgs {
    /// The key vault
    name: String,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

/// A deleted vault, with the field names of Azure's management API.
#[derive(Serialize)]
struct DeletedView {
    name: String,
    properties: DeletedProperties,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeletedProperties {
    vault_id: String,
    #[serde(with = "time::serde::rfc3339::option")]
    deletion_date: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    scheduled_purge_date: Option<OffsetDateTime>,
    purge_protection_enabled: bool,
}

impl From<DeletedVault> for DeletedView {
    fn from(vault: DeletedVault) -> Self {
        Self {
            name: vault.name,
            properties: DeletedProperties {
                vault_id: vault.url,
                deletion_date: vault.deletion.map(|d| d.deleted),
                scheduled_purge_date: vault.deletion.map(|d| d.scheduled_purge),
                purge_protection_enabled: vault.purge_protection,
            },
        }
    }
}

impl Tabular for DeletedView {
    const COLUMNS: &'static [&'static str] = &["name", "deleted", "scheduledPurge", "protected"];

    fn cells(&self) -> Vec<String> {
        let properties = &self.properties;
        vec![
            self.name.clone(),
            time_cell(properties.deletion_date),
            time_cell(properties.scheduled_purge_date),
            properties.purge_protection_enabled.to_string(),
        ]
    }
}

pub(super) fn delete(
    context: &Context,
    installation: &Installation,
    args: &DeleteArgs,
) -> Result<(), CliError> {
    let name = &args.name;
    context
        .output
        .confirm(&format!("Delete the key vault '{name}'?"), args.yes)?;
    let deleted = installation.delete_vault(name, args.force, disks::reconcile)?;
    if deleted.deletion.is_none() {
        let left = deleted.left.as_ref().map_or_else(String::new, |left| {
            format!("; what was left of them is in {}", left.display())
        });
        context.output.note(&format!(
            "the files of the key vault '{name}' were gone; it left the catalog, and its name is free{left}"
        ));
    }
    context.output.show(&DeletedView::from(deleted))
}

pub(super) fn list_deleted(context: &Context, installation: &Installation) -> Result<(), CliError> {
    let deleted = installation.deleted_vaults()?.into_iter();
    let views: Vec<DeletedView> = deleted.map(DeletedView::from).collect();
    context.output.list(&views)
}

pub(super) fn purge(
    context: &Context,
    installation: &Installation,
    args: &PurgeArgs,
) -> Result<(), CliError> {
    let name = &args.name;
    let question =
        format!("Destroy the key vault '{name}' and every disk that only its keys unlock?");
    context.output.confirm(&question, args.yes)?;
    installation.purge_vault(name)?;
    context
        .output
        .note(&format!("the key vault '{name}' is purged"));
    Ok(())
}
