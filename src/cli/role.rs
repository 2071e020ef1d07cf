//! `sealdisk role`: who may do what over the management API.

use clap::{Args, Subcommand};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::output::time_cell;
use super::{CliError, Context, Tabular};
use arm::locks;
use arm::roles::{DELETE, NewAssignment, WRITE, assign, detail, remove, role, role_named};
use arm::{ArmError, recorded_as};
use installation::Installation;
use installation::catalog::{RoleAssignmentRecord, Touch};
use vault::audit::AuditRecord;

/// Arguments of `role`.
#[derive(Args)]
pub struct RoleArgs {
    #[command(subcommand)]
    command: RoleCommand,
}

#[derive(Subcommand)]
enum RoleCommand {
    /// Grant, list and revoke roles of identities
    Assignment(AssignmentArgs),
}

#[derive(Args)]
struct AssignmentArgs {
    #[command(subcommand)]
    command: AssignmentCommand,
}

#[derive(Subcommand)]
enum AssignmentCommand {
    /// Grant a role to an identity
    #[command(after_help = "Examples:
  sealdisk role assignment create --assignee admin --role Owner
  sealdisk role assignment create --assignee backup-job --role Reader \\
    --scope /subscriptions/SUBSCRIPTION/resourceGroups/web

The roles are Azure's built-in ones: Owner, Contributor, Reader, 'Key Vault Crypto Officer' and so on.")]
    Create(CreateArgs),
    /// List the roles that are granted
    #[command(after_help = "Example:\n  sealdisk role assignment list -o json")]
    List,
    /// Revoke a role
    #[command(after_help = "Example:
  sealdisk role assignment delete 0d4f3c44-8c0e-4f0b-9b5e-0c9d1f1f3c11 --yes")]
    Delete(DeleteArgs),
}

#[derive(Args)]
struct CreateArgs {
    /// The identity: its name, disk-encryption-set/SET, its client id or its object id
    #[arg(long, value_name = "NAME|ID")]
    assignee: String,
    /// The role: its name or its id
    #[arg(long, value_name = "NAME|ID")]
    role: String,
    /// The id of the subscription, a resource group or a resource [default: the subscription]
    #[arg(long, value_name = "ID")]
    scope: Option<String>,
}

#[derive(Args)]
struct DeleteArgs {
    /// The role assignment, as `role assignment list` shows it
    name: Uuid,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

/// A role assignment, for output.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AssignmentView {
    name: Uuid,
    principal_name: Option<String>,
    principal_id: Uuid,
    role_definition_name: Option<&'static str>,
    role_definition_id: Uuid,
    scope: String,
    #[serde(with = "time::serde::rfc3339")]
    created: OffsetDateTime,
}

impl AssignmentView {
    fn new(installation: &Installation, record: RoleAssignmentRecord) -> Result<Self, CliError> {
        let principal = arm::find(installation, record.principal)?;
        Ok(Self {
            name: record.id,
            principal_name: principal.map(|principal| principal.name),
            principal_id: record.principal,
            role_definition_name: role(record.role).map(|role| role.name),
            role_definition_id: record.role,
            scope: record.scope,
            created: record.created.at,
        })
    }
}

impl Tabular for AssignmentView {
    const COLUMNS: &'static [&'static str] = &[
        "name",
        "principalName",
        "roleDefinitionName",
        "scope",
        "created",
    ];

    fn cells(&self) -> Vec<String> {
        let principal = || self.principal_id.to_string();
        vec![
            self.name.to_string(),
            self.principal_name.clone().unwrap_or_else(principal),
            self.role_definition_name.unwrap_or_default().into(),
            self.scope.clone(),
            time_cell(Some(self.created)),
        ]
    }
}

pub(super) fn run(context: &Context, args: RoleArgs) -> Result<(), CliError> {
    let RoleCommand::Assignment(args) = args.command;
    let installation = context.installation()?;
    match args.command {
        AssignmentCommand::Create(args) => create(context, &installation, &args),
        AssignmentCommand::List => {
            let all = installation.catalog().role_assignments()?.into_iter();
            let views: Vec<AssignmentView> = all
                .map(|record| AssignmentView::new(&installation, record))
                .collect::<Result<_, _>>()?;
            context.output.list(&views)
        }
        AssignmentCommand::Delete(args) => {
            let question = format!(
                "The role assignment {} will be revoked. Continue?",
                args.name
            );
            context.output.confirm(&question, args.yes)?;
            let all = installation.catalog().role_assignments()?;
            if let Some(record) = all.iter().find(|record| record.id == args.name) {
                let action = "Microsoft.Authorization/roleAssignments/delete";
                locks::refuse(&installation, action, &record.scope)?;
            }
            match revoke(&installation, args.name)? {
                Some(_) => Ok(()),
                None => Err(CliError::new(
                    "ResourceNotFound",
                    format!(
                        "there is no role assignment {}; `sealdisk role assignment list` shows those that exist",
                        args.name
                    ),
                )),
            }
        }
    }
}

fn revoke(
    installation: &Installation,
    name: Uuid,
) -> Result<Option<RoleAssignmentRecord>, CliError> {
    let all = installation.catalog().role_assignments()?;
    let Some(known) = all.iter().find(|known| known.id == name) else {
        return Ok(None);
    };
    let detail = detail(&known.scope, known.role, known.principal);
    let record = record(installation, DELETE, detail);
    Ok(recorded_as(installation, record, || {
        remove(installation, name)
    })?)
}

fn record(installation: &Installation, operation: &str, detail: String) -> AuditRecord {
    let operator = installation.operator();
    AuditRecord::new(operator.object_id, &operator.origin, operation).with_detail(detail)
}

fn create(
    context: &Context,
    installation: &Installation,
    args: &CreateArgs,
) -> Result<(), CliError> {
    let by_id = || Uuid::try_parse(&args.role).ok().and_then(role);
    let role = role_named(&args.role).or_else(by_id).ok_or_else(|| {
        CliError::usage(format!(
            "there is no role '{}'; docs/azure.md names those that there are, as Owner, Contributor and Reader",
            args.role
        ))
    })?;
    let principal = arm::named(installation, &args.assignee)?.ok_or_else(|| {
        CliError::new(
            "ResourceNotFound",
            format!(
                "there is no identity '{}'; `sealdisk identity list` shows those that exist",
                args.assignee
            ),
        )
    })?;
    let subscription = format!("/subscriptions/{}", arm::subscription(installation));
    let new = NewAssignment {
        id: Uuid::new_v4(),
        scope: args.scope.as_deref().unwrap_or(&subscription),
        role: role.id,
        principal: principal.object_id,
        principal_type: "ServicePrincipal",
        by: Touch {
            at: OffsetDateTime::now_utc(),
            by: installation.operator().object_id,
        },
    };
    let action = "Microsoft.Authorization/roleAssignments/write";
    locks::refuse(installation, action, new.scope)?;
    let detail = detail(new.scope, role.id, principal.object_id);
    let record = record(installation, WRITE, detail);
    let (record, _) = recorded_as(installation, record, || assign(installation, &new))?;
    context
        .output
        .show(&AssignmentView::new(installation, record)?)
}

/// The command line says less of whom it asked than an API, and what of the host has failed.
impl From<ArmError> for CliError {
    fn from(error: ArmError) -> Self {
        match error.cause {
            Some(cause) => Self::new(cause.0, cause.1),
            None => Self::new(error.code, error.message),
        }
    }
}
