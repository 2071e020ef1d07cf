//! `sealdisk identity`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::federation::{self, FederatedCredentialArgs};
use super::output::time_cell;
use super::users::{self, ApproveArgs, SetPasswordArgs};
use super::{CliError, Context, Tabular};
use installation::catalog::{IdentityOwner, IdentityRecord, Kind};
use installation::{IdentitySecret, Installation};

/// Arguments of `identity`.
#[derive(Args)]
pub struct IdentityArgs {
    #[command(subcommand)]
    command: IdentityCommand,
}

#[derive(Subcommand)]
enum IdentityCommand {
    /// Create an identity for a user or program that gets tokens from `keyvault serve`
    #[command(after_help = "Example:
  sealdisk identity create backup-job --secret-file /etc/backup-job.secret
  sealdisk keyvault set-policy myvault --key-permissions get list backup --object-id \\
    $(sealdisk identity show backup-job -o json | jq -r .principalId)")]
    Create(CreateArgs),
    /// List the identities of users, and those of disk encryption sets that have used `keyvault serve`
    #[command(after_help = "Example:\n  sealdisk identity list")]
    List,
    /// Show the identity of a user
    #[command(after_help = "Example:\n  sealdisk identity show backup-job -o json")]
    Show(NameArgs),
    /// Delete the identity of a user, and revoke its secret and its tokens
    #[command(after_help = "Example:\n  sealdisk identity delete backup-job --yes")]
    Delete(DeleteArgs),
    /// Reset the secret of the identity of a user
    #[command(after_help = "Example:
  sealdisk identity reset-secret backup-job --secret-file /etc/backup-job.secret")]
    ResetSecret(ResetArgs),
    /// Give an identity a password, with which a user logs in by `az login -u NAME`
    #[command(after_help = "Examples:
  sealdisk identity set-password alice
  sealdisk identity set-password alice --password-file alice.password

Without a file a password is made and printed once. It takes the place of the one that there was, and ends logins.")]
    SetPassword(SetPasswordArgs),
    /// Let nobody log in with the password of an identity any more
    #[command(after_help = "Example:\n  sealdisk identity delete-password alice --yes")]
    DeletePassword(DeleteArgs),
    /// Approve a login on a device (`az login --use-device-code`) by the code that it shows
    #[command(after_help = "Example:
  sealdisk identity approve BCDF-GHJK --identity-name alice

Whoever has begun the login is that identity then. Approve what you or somebody you talk to has just begun, and
compare the address that is shown.")]
    Approve(ApproveArgs),
    /// Print what another installation has to know to trust identities of this one
    #[command(after_help = "Example:
  sealdisk identity trust -o json >ours.json

Whoever operates the other installation gives the file to `sealdisk identity federated-credential create`.
It has no secret in it; who exchanges it decides who is trusted.")]
    Trust,
    /// Manage which identities of other installations an identity trusts
    FederatedCredential(FederatedCredentialArgs),
    /// Reset the secret of the identity of a disk encryption set
    #[command(after_help = "Example:
  sealdisk identity secret --disk-encryption-set myset --secret-file /etc/sealdisk/myset.secret")]
    Secret(SecretArgs),
}

#[derive(Args)]
struct NameArgs {
    /// The identity
    name: String,
}

#[derive(Args)]
struct SecretFileArgs {
    /// Write the secret to this new file (mode 0600) instead of printing it
    #[arg(long, value_name = "PATH")]
    secret_file: Option<PathBuf>,
}

#[derive(Args)]
struct CreateArgs {
    /// The identity
    name: String,
    #[command(flatten)]
    secret: SecretFileArgs,
}

#[derive(Args)]
struct DeleteArgs {
    /// The identity
    name: String,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

#[derive(Args)]
struct ResetArgs {
    /// The identity
    name: String,
    #[command(flatten)]
    secret: SecretFileArgs,
}

#[derive(Args)]
struct SecretArgs {
    /// The disk encryption set
    #[arg(long, value_name = "SET")]
    disk_encryption_set: String,
    #[command(flatten)]
    secret: SecretFileArgs,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IdentityView<'a> {
    name: String,
    r#type: &'static str,
    principal_id: Uuid,
    client_id: Uuid,
    has_secret: bool,
    /// Until when that is good, and whether it is so no more; neither where it does not end.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    secret_ends: Option<OffsetDateTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_ended: Option<bool>,
    /// Whether the management API gives it its secret.
    application: bool,
    #[serde(with = "time::serde::rfc3339")]
    created: OffsetDateTime,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
}

impl<'a> IdentityView<'a> {
    fn new(record: &IdentityRecord, secret: Option<&'a str>) -> Self {
        let r#type = match &record.owner {
            IdentityOwner::Named(_) => "UserAssigned",
            IdentityOwner::DiskEncryptionSet(_) => "SystemAssigned",
        };
        Self {
            name: record.owner.to_string(),
            r#type,
            principal_id: record.object_id,
            client_id: record.client_id,
            has_secret: record.secret_hash.is_some() || secret.is_some(),
            secret_ends: record.secret_ends,
            secret_ended: record.secret_ends.map(|_| record.secret_has_ended()),
            application: record.is_application,
            created: record.created,
            secret,
        }
    }
}

impl Tabular for IdentityView<'_> {
    const COLUMNS: &'static [&'static str] = &[
        "name",
        "type",
        "principalId",
        "clientId",
        "application",
        "secretEnds",
        "created",
    ];

    const FIELDS: &'static [&'static str] = &[
        "name",
        "type",
        "principalId",
        "clientId",
        "hasSecret",
        "secretEnds",
        "secretEnded",
        "application",
        "created",
    ];

    fn cells(&self) -> Vec<String> {
        let ends = time_cell(self.secret_ends);
        vec![
            self.name.clone(),
            self.r#type.into(),
            self.principal_id.to_string(),
            self.client_id.to_string(),
            self.application.to_string(),
            match self.secret_ended {
                Some(true) => format!("ended {ends}"),
                _ => ends,
            },
            time_cell(Some(self.created)),
        ]
    }
}

pub(super) fn run(context: &Context, args: IdentityArgs) -> Result<(), CliError> {
    let installation = context.installation()?;
    let output = &context.output;
    match args.command {
        IdentityCommand::Create(args) => {
            let file = SecretFile::prepare(context, args.secret)?;
            installation
                .catalog()
                .forget_left(Kind::Identity, &args.name)?;
            let (record, secret) = installation.create_identity(&args.name)?;
            file.give(context, &record, &secret)
        }
        IdentityCommand::List => {
            let identities = installation.catalog().identities()?;
            let views: Vec<_> = identities
                .iter()
                .map(|identity| IdentityView::new(&identity.record, None))
                .collect();
            output.list(&views)
        }
        IdentityCommand::Show(args) => {
            let identity = installation.find_identity(&args.name)?;
            output.show(&IdentityView::new(&identity.record, None))
        }
        IdentityCommand::Delete(args) => delete(context, &installation, &args),
        IdentityCommand::ResetSecret(args) => {
            new_secret(context, &installation, &args.name, args.secret)
        }
        IdentityCommand::SetPassword(args) => users::set_password(context, &installation, &args),
        IdentityCommand::DeletePassword(args) => {
            let question = format!("Delete the password of the identity '{}'?", args.name);
            context.output.confirm(&question, args.yes)?;
            Ok(installation.delete_password(&args.name)?)
        }
        IdentityCommand::Approve(args) => users::approve(context, &installation, &args),
        IdentityCommand::Trust => federation::trust(context, &installation),
        IdentityCommand::FederatedCredential(args) => federation::run(context, &installation, args),
        IdentityCommand::Secret(args) => {
            let name = format!("{}{}", IdentityOwner::SET_PREFIX, args.disk_encryption_set);
            new_secret(context, &installation, &name, args.secret)
        }
    }
}

fn new_secret(
    context: &Context,
    installation: &Installation,
    name: &str,
    secret: SecretFileArgs,
) -> Result<(), CliError> {
    // It refuses before the identity of a set is made, which is when it is first looked for.
    let file = SecretFile::prepare(context, secret)?;
    let identity = installation.find_identity(name)?;
    let secret = installation.reset_secret(&identity)?;
    let record = IdentityRecord {
        secret_ends: None,
        ..identity.record
    };
    file.give(context, &record, &secret)
}

fn delete(
    context: &Context,
    installation: &Installation,
    args: &DeleteArgs,
) -> Result<(), CliError> {
    let name = &args.name;
    installation.catalog().identity(name)?;
    let question = format!("Delete the identity '{name}'?");
    context.output.confirm(&question, args.yes)?;
    let deleted = installation.delete_identity(name)?;
    for vault in deleted.vaults_with_policy {
        context.output.note(&format!(
            "note: the key vault '{vault}' still has an access policy for it; remove it with \
             `sealdisk keyvault delete-policy {vault} --object-id {}`",
            deleted.object_id
        ));
    }
    Ok(())
}

/// Where a secret goes. The file is made before the secret is: one that cannot be written must not
/// cost the old secret.
struct SecretFile(Option<(PathBuf, std::fs::File)>);

impl SecretFile {
    fn prepare(context: &Context, args: SecretFileArgs) -> Result<Self, CliError> {
        let Some(path) = args.secret_file else {
            return will_be_printed(context).map(|()| Self(None));
        };
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| unwritable(&path, &e))?;
        Ok(Self(Some((path, file))))
    }

    fn give(
        mut self,
        context: &Context,
        record: &IdentityRecord,
        secret: &IdentitySecret,
    ) -> Result<(), CliError> {
        let Some((path, mut file)) = self.0.take() else {
            let view = IdentityView::new(record, Some(secret.expose()));
            return context.output.show_once(&view, another(&record.owner));
        };
        file.write_all(secret.expose().as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|e| unwritable(&path, &e))?;
        let view = IdentityView {
            has_secret: true,
            ..IdentityView::new(record, None)
        };
        context.output.show(&view)
    }
}

/// What gives an identity another secret.
fn another(owner: &IdentityOwner) -> String {
    let command = match owner {
        IdentityOwner::Named(name) => format!("reset-secret {name}"),
        IdentityOwner::DiskEncryptionSet(set) => format!("secret --disk-encryption-set {set}"),
    };
    format!("`sealdisk identity {command}` makes another secret")
}

/// Refuses an output in which a secret would be missing that is printed once and kept by nobody.
fn will_be_printed(context: &Context) -> Result<(), CliError> {
    const SAMPLE: &str = "the secret";
    let view = IdentityView {
        name: String::new(),
        r#type: "UserAssigned",
        principal_id: Uuid::nil(),
        client_id: Uuid::nil(),
        has_secret: true,
        secret_ends: None,
        secret_ended: None,
        application: false,
        created: OffsetDateTime::UNIX_EPOCH,
        secret: Some(SAMPLE),
    };
    match context.output.has(&view, SAMPLE)? {
        true => Ok(()),
        false => Err(CliError::usage(
            "the secret is printed once, and would not be in this output: give --secret-file PATH, or a --query that has it, \
             as --query secret",
        )),
    }
}

/// A refused command leaves no empty file.
impl Drop for SecretFile {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn unwritable(path: &Path, error: &io::Error) -> CliError {
    CliError::new(
        "SecretFile",
        format!(
            "cannot write the secret to {}: {error}; name a file that does not exist yet",
            path.display()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use time::Duration;

    #[test]
    fn an_application_and_the_end_of_its_secret_are_told() {
        let shown = |is_application, secret_ends| {
            let record = IdentityRecord {
                object_id: Uuid::nil(),
                client_id: Uuid::nil(),
                owner: IdentityOwner::Named("pipeline".into()),
                secret_hash: Some([0; 32]),
                secret_ends,
                is_application,
                created: OffsetDateTime::UNIX_EPOCH,
            };
            let view = IdentityView::new(&record, None);
            (serde_json::to_value(&view).unwrap(), view.cells())
        };
        let (view, _) = shown(false, None);
        assert_eq!(view["application"], false);
        assert!(view.get("secretEnds").is_none() && view.get("secretEnded").is_none());
        let past = OffsetDateTime::UNIX_EPOCH;
        let (view, cells) = shown(true, Some(past));
        assert_eq!(view["application"], true);
        assert_eq!(view["secretEnds"], "1970-01-01T00:00:00Z");
        assert_eq!(view["secretEnded"], json!(true));
        assert!(cells.contains(&"ended 1970-01-01T00:00:00Z".to_owned()));
        let (view, _) = shown(true, Some(OffsetDateTime::now_utc() + Duration::DAY));
        assert_eq!(view["secretEnded"], json!(false));
    }
}
