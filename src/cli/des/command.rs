//! The subcommands of `disk-encryption-set`.

use clap::{Args, Subcommand, ValueEnum};

use super::identity::{self, DesIdentityArgs};
use super::identity_options::IdentityOptions;
use super::view::{DesView, note_policies};
use crate::cli::{CliError, Context};
use disks::des::{DesChange, NewDes, UpdatedDes};
use installation::Installation;
use installation::catalog::{DiskEncryptionSetRecord, EncryptionType, Kind};

/// Arguments of `disk-encryption-set`.
#[derive(Args)]
pub struct DesArgs {
    #[command(subcommand)]
    command: DesCommand,
}

#[derive(Subcommand)]
enum DesCommand {
    /// Create a disk encryption set and its identity
    #[command(after_help = "Example:
  sealdisk disk-encryption-set create myset --key-url https://myvault.vault.localhost/keys/mykey
  sealdisk keyvault set-policy myvault --key-permissions get wrapKey unwrapKey --object-id \\
    $(sealdisk disk-encryption-set show myset -o json | jq -r .identity.principalId)

With a remote vault that `keyvault connect` has connected:
  sealdisk disk-encryption-set create far --key-url https://far.vault.azure.net/keys/mykey \\
    --identity system

With two DEKs a disk, one under this key and one under the platform-managed key:
  sealdisk disk-encryption-set create twice --key-url https://myvault.vault.localhost/keys/mykey \\
    --encryption-type EncryptionAtRestWithPlatformAndCustomerKeys")]
    Create(CreateArgs),
    /// List the disk encryption sets
    #[command(after_help = "Example:\n  sealdisk disk-encryption-set list")]
    List,
    /// Show a disk encryption set
    #[command(after_help = "Example:\n  sealdisk disk-encryption-set show myset -o json")]
    Show(NameArgs),
    /// Change the key of a disk encryption set, or its key rotation, and rewrap its disks, also
    /// attached ones
    #[command(after_help = "Example:
  sealdisk disk-encryption-set update myset --key-url https://myvault.vault.localhost/keys/newkey")]
    Update(UpdateArgs),
    /// Rewrap the disks of sets with automatic key rotation under the latest version of their key, also
    /// attached ones
    #[command(after_help = "Example:
  sealdisk disk-encryption-set rotate

`sealdisk keyvault serve` does this by itself. Without it, run this from a timer, or
after you create a key version.")]
    Rotate(RotateArgs),
    /// List the key versions of a set, what each wraps, and whether it is safe to disable
    #[command(after_help = "Example:\n  sealdisk disk-encryption-set show-usage myset -o json")]
    ShowUsage(NameArgs),
    /// Remove, assign or show the identity of a set
    Identity(DesIdentityArgs),
    /// Delete a disk encryption set that no disk uses
    #[command(after_help = "Example:\n  sealdisk disk-encryption-set delete myset --yes")]
    Delete(DeleteArgs),
}

#[derive(Args)]
struct NameArgs {
    /// The disk encryption set
    name: String,
}

#[derive(Args)]
struct CreateArgs {
    /// The disk encryption set
    name: String,
    /// URL of its key; without a version, the latest one is used
    #[arg(long, value_name = "URL")]
    key_url: String,
    /// Name or URL of the key's vault, checked against the key's URL
    #[arg(long, value_name = "VAULT")]
    source_vault: Option<String>,
    /// Follow the latest version of the key
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true",
          value_name = "true|false")]
    enable_auto_key_rotation: bool,
    /// Encrypt the disks twice: under the platform-managed key as well, each with a DEK of its own
    #[arg(long, value_enum, default_value_t, value_name = "TYPE")]
    encryption_type: EncryptionTypeArg,
    #[command(flatten)]
    identity: IdentityOptions,
}

/// Whose keys encrypt the disks of a set, by Azure's names.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum EncryptionTypeArg {
    /// Under the set's key
    #[default]
    EncryptionAtRestWithCustomerKey,
    /// Twice: under the set's key, and under the platform-managed key
    EncryptionAtRestWithPlatformAndCustomerKeys,
}

impl From<EncryptionTypeArg> for EncryptionType {
    fn from(arg: EncryptionTypeArg) -> Self {
        match arg {
            EncryptionTypeArg::EncryptionAtRestWithCustomerKey => Self::CustomerKey,
            EncryptionTypeArg::EncryptionAtRestWithPlatformAndCustomerKeys => {
                Self::PlatformAndCustomerKeys
            }
        }
    }
}

#[derive(Args)]
struct UpdateArgs {
    /// The disk encryption set
    name: String,
    /// URL of its new key; without a version, the latest one is used
    #[arg(long, value_name = "URL")]
    key_url: Option<String>,
    /// Name or URL of the new key's vault, checked against the key's URL
    #[arg(long, value_name = "VAULT", requires = "key_url")]
    source_vault: Option<String>,
    /// Follow the latest version of the key
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    enable_auto_key_rotation: Option<bool>,
}

#[derive(Args)]
struct RotateArgs {
    /// The disk encryption set [default: all with automatic key rotation]
    name: Option<String>,
}

#[derive(Args)]
struct DeleteArgs {
    /// The disk encryption set
    name: String,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

pub fn run(context: &Context, args: DesArgs) -> Result<(), CliError> {
    let installation = context.installation()?;
    let output = &context.output;
    match args.command {
        DesCommand::Create(args) => {
            installation
                .catalog()
                .forget_left(Kind::DiskEncryptionSet, &args.name)?;
            let record = disks::des::create(
                &installation,
                &NewDes {
                    name: &args.name,
                    key_url: &args.key_url,
                    source_vault: args.source_vault.as_deref(),
                    auto_rotation: args.enable_auto_key_rotation,
                    encryption_type: args.encryption_type.into(),
                    identity: args.identity.identity(&installation)?,
                },
            )?;
            output.show(&DesView::from(record))
        }
        DesCommand::List => {
            let sets = installation.catalog().all_des()?.into_iter();
            let views: Vec<DesView> = sets.map(|set| set.record.into()).collect();
            output.list(&views)
        }
        DesCommand::Show(args) => {
            let record = installation.catalog().des(&args.name)?.record;
            output.show(&DesView::from(record))
        }
        DesCommand::Update(args) => update(context, &installation, &args),
        DesCommand::Rotate(args) => rotate(context, &installation, args.name.as_deref()),
        DesCommand::ShowUsage(args) => {
            output.list(&disks::des::key_usage(&installation, &args.name)?)
        }
        DesCommand::Identity(args) => identity::run(context, args),
        DesCommand::Delete(args) => delete(context, &installation, &args),
    }
}

fn update(
    context: &Context,
    installation: &Installation,
    args: &UpdateArgs,
) -> Result<(), CliError> {
    if args.key_url.is_none() && args.enable_auto_key_rotation.is_none() {
        return Err(CliError::usage(
            "nothing to change: give --key-url or --enable-auto-key-rotation",
        ));
    }
    let change = DesChange {
        key_url: args.key_url.as_deref(),
        source_vault: args.source_vault.as_deref(),
        auto_rotation: args.enable_auto_key_rotation,
        identity: None,
    };
    let updated = disks::des::update(installation, &args.name, &change)?;
    let (record, refused) = report(context, updated);
    context.output.show(&DesView::from(record))?;
    refused.map_or(Ok(()), Err)
}

fn rotate(
    context: &Context,
    installation: &Installation,
    name: Option<&str>,
) -> Result<(), CliError> {
    if let Some(name) = name
        && !installation.catalog().des(name)?.record.auto_rotation
    {
        return Err(CliError::usage(format!(
            "the set '{name}' does not follow its key's latest version; change that with \
             `sealdisk disk-encryption-set update {name} --enable-auto-key-rotation`, or give it \
             another key with --key-url"
        )));
    }
    let mut refused = None;
    let mut views = Vec::new();
    for followed in disks::des::follow_latest_keys(installation, name)? {
        match followed.outcome {
            Ok(updated) => {
                let (record, left) = report(context, updated);
                refused = refused.or(left);
                views.push(DesView::from(record));
            }
            Err(error) => {
                let error = CliError::from(error);
                let message = format!("the set '{}': {}", followed.name, error.message);
                context.output.note(&message);
                refused = refused.or(Some(CliError::new(error.code, message)));
            }
        }
    }
    context.output.list(&views)?;
    refused.map_or(Ok(()), Err)
}

/// Says for each disk that its key is another one. The error is why a disk is left under the old
/// key, when one is.
fn report(context: &Context, updated: UpdatedDes) -> (DiskEncryptionSetRecord, Option<CliError>) {
    for (kind, name) in &updated.rewrapped {
        context.output.note(&format!(
            "the {kind} '{name}' is wrapped by the set's key now"
        ));
    }
    let are = match updated.left.len() {
        0 | 1 => "is".into(),
        left => format!("and {} others are", left - 1),
    };
    let refused = updated.left.into_iter().next().map(|left| {
        let reason = CliError::from(left.reason);
        CliError::new(
            reason.code,
            format!(
                "the set is changed, but the {} '{}' {are} still wrapped by {}, which must stay \
                 enabled until this command, repeated, has succeeded: {}",
                left.record.kind, left.record.name, left.key_url, reason.message
            ),
        )
    });
    (updated.record, refused)
}

fn delete(
    context: &Context,
    installation: &Installation,
    args: &DeleteArgs,
) -> Result<(), CliError> {
    let name = &args.name;
    installation.catalog().des(name)?;
    let question = format!("Delete the disk encryption set '{name}' and its identity?");
    context.output.confirm(&question, args.yes)?;
    let deleted = disks::des::delete(installation, name)?;
    note_policies(context, &deleted);
    Ok(())
}
