//! `sealdisk identity trust` and `identity federated-credential`: trust between installations.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::output::time_cell;
use super::{CliError, Context, Tabular};
use installation::catalog::FederatedCredentialRecord;
use installation::{Installation, Trust};

/// Longest trust document that is read.
const TRUST_LIMIT: u64 = 64 * 1024;

/// Arguments of `identity federated-credential`.
#[derive(Args)]
pub(super) struct FederatedCredentialArgs {
    #[command(subcommand)]
    command: FederatedCredentialCommand,
}

#[derive(Subcommand)]
enum FederatedCredentialCommand {
    /// Have an identity trust one of another installation
    #[command(after_help = "Example:
  sealdisk identity federated-credential create from-theirs --identity-name disks-of-theirs \\
    --trust theirs.json --subject 0d4f3c44-8c0e-4f0b-9b5e-0c9d1f1f3c11

The file is what `sealdisk identity trust -o json` prints there, the subject the principalId of an identity there.
That identity can then do with the vaults of this installation what the one here can.")]
    Create(CreateArgs),
    /// List whom an identity trusts
    #[command(after_help = "Example:
  sealdisk identity federated-credential list --identity-name disks-of-theirs")]
    List(IdentityNameArgs),
    /// Have an identity trust another no more
    #[command(after_help = "Example:
  sealdisk identity federated-credential delete from-theirs --identity-name disks-of-theirs --yes

Tokens that it was given are good until they expire, an hour at most. To cut it off at once, take away what the
identity may do in the vault.")]
    Delete(DeleteArgs),
}

#[derive(Args)]
struct IdentityNameArgs {
    /// The identity of this installation
    #[arg(long, value_name = "IDENTITY")]
    identity_name: String,
}

#[derive(Args)]
struct CreateArgs {
    /// The credential's name
    name: String,
    #[command(flatten)]
    identity: IdentityNameArgs,
    /// What the other installation is known by, as `identity trust -o json` has printed it there
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// The object id (principalId) of the identity of the other installation
    #[arg(long, value_name = "OBJECT-ID")]
    subject: Uuid,
}

#[derive(Args)]
struct DeleteArgs {
    /// The credential
    name: String,
    #[command(flatten)]
    identity: IdentityNameArgs,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

#[derive(Serialize)]
#[serde(transparent)]
struct TrustView(Trust);

impl Tabular for TrustView {
    const COLUMNS: &'static [&'static str] = &["tenantId", "issuer", "key"];

    fn cells(&self) -> Vec<String> {
        let kid = self.0.keys.first().map(|key| key.kid.clone());
        vec![
            self.0.tenant_id.to_string(),
            self.0.issuer.clone(),
            kid.unwrap_or_default(),
        ]
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CredentialView {
    name: String,
    issuer: String,
    subject: Uuid,
    keys: Vec<String>,
    #[serde(with = "time::serde::rfc3339")]
    created: OffsetDateTime,
}

impl From<FederatedCredentialRecord> for CredentialView {
    fn from(record: FederatedCredentialRecord) -> Self {
        Self {
            name: record.name,
            issuer: record.issuer,
            subject: record.subject,
            keys: record.keys.into_iter().map(|key| key.kid).collect(),
            created: record.created,
        }
    }
}

impl Tabular for CredentialView {
    const COLUMNS: &'static [&'static str] = &["name", "issuer", "subject", "created"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.issuer.clone(),
            self.subject.to_string(),
            time_cell(Some(self.created)),
        ]
    }
}

pub(super) fn trust(context: &Context, installation: &Installation) -> Result<(), CliError> {
    context.output.show(&TrustView(installation.trust()?))
}

pub(super) fn run(
    context: &Context,
    installation: &Installation,
    args: FederatedCredentialArgs,
) -> Result<(), CliError> {
    match args.command {
        FederatedCredentialCommand::Create(args) => {
            let trust = read_trust(&args.trust)?;
            let identity = &args.identity.identity_name;
            let made =
                installation.add_federated_credential(identity, &args.name, trust, args.subject)?;
            context.output.show(&CredentialView::from(made))
        }
        FederatedCredentialCommand::List(args) => {
            let identity = installation.catalog().identity(&args.identity_name)?;
            let id = identity.record.object_id;
            let all = installation.catalog().federated_credentials(Some(id))?;
            let views: Vec<CredentialView> = all.into_iter().map(Into::into).collect();
            context.output.list(&views)
        }
        FederatedCredentialCommand::Delete(args) => {
            let (name, identity) = (&args.name, &args.identity.identity_name);
            let question = format!("Have the identity '{identity}' trust by '{name}' no more?");
            context.output.confirm(&question, args.yes)?;
            Ok(installation.delete_federated_credential(identity, name)?)
        }
    }
}

fn read_trust(path: &Path) -> Result<Trust, CliError> {
    let fail = |why: &dyn std::fmt::Display| {
        CliError::usage(format!(
            "cannot read the trust document {}: {why}",
            path.display()
        ))
    };
    let size = std::fs::metadata(path).map_err(|e| fail(&e))?.len();
    if size > TRUST_LIMIT {
        return Err(fail(&"it is larger than 64 KiB"));
    }
    let text = std::fs::read(path).map_err(|e| fail(&e))?;
    serde_json::from_slice(&text).map_err(|e| fail(&e))
}
