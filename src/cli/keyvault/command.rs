//! The subcommands of `keyvault`.

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::due::run_due;
use super::hsm::HsmOptions;
use super::unlocked::unlocked;
use super::view::{VaultView, view};
use super::{connect, lifecycle, master, network, serve};
use crate::cli::audit::EntryView;
use crate::cli::{CliError, Context, key, units};
use installation::catalog::Kind;
use installation::{Installation, vault_notice};
use vault::{Permissions, VaultSettings};

/// Arguments of `keyvault`.
#[derive(Args)]
pub struct KeyvaultArgs {
    #[command(subcommand)]
    command: KeyvaultCommand,
}

#[derive(Subcommand)]
enum KeyvaultCommand {
    /// Create a key vault; the operator gets all permissions in it
    #[command(after_help = "Example:
  sealdisk keyvault create myvault

A master key encrypts the vault's private keys. By default it is the systemd credential
sealdisk-vault-NAME if there is one (32 bytes, LoadCredentialEncrypted=), else the new file
STATE_DIR/vaults/NAME/master.key, which lies beside the disks. `keyvault reseal` moves it at any
time. If the master key is lost, so is everything that the vault's keys wrap: keep a backup
(`sealdisk backup create --with-master-key`) or a copy.")]
    Create(CreateArgs),
    /// Change the settings of a key vault
    #[command(after_help = "Example:
  sealdisk keyvault update myvault --enable-purge-protection true

Purge protection cannot be turned off again.")]
    Update(UpdateArgs),
    /// List the key vaults
    #[command(after_help = "Example:\n  sealdisk keyvault list -o json")]
    List,
    /// Show a key vault and its access policies
    #[command(after_help = "Example:\n  sealdisk keyvault show myvault")]
    Show(NameArgs),
    /// Set the key permissions of an identity, in place of those that it has
    #[command(after_help = "Example:
  sealdisk keyvault set-policy myvault --object-id 6f0d2c1e-6f9b-4d6f-9a57-2f2a6b1d0c55 \\
    --key-permissions get wrapKey unwrapKey")]
    SetPolicy(SetPolicyArgs),
    /// Delete the access policy of an identity
    #[command(after_help = "Example:
  sealdisk keyvault delete-policy myvault --object-id 6f0d2c1e-6f9b-4d6f-9a57-2f2a6b1d0c55")]
    DeletePolicy(DeletePolicyArgs),
    /// Manage the addresses from which a vault may be asked over the network
    NetworkRule(network::NetworkRuleArgs),
    /// Print the audit log of a vault: every operation, allowed or refused
    #[command(after_help = "Example:\n  sealdisk keyvault audit-log myvault")]
    AuditLog(NameArgs),
    /// Replace the master key of a key vault, and choose where the new one is kept
    #[command(after_help = "Example:
  sealdisk keyvault reseal platform --tpm2
  sealdisk keyvault reseal --all --tpm2 --tpm2-pcrs sha256:7
  sealdisk keyvault reseal myvault --master-key-file /media/keys/myvault.key

Without an option, the new key is a file beside the vault's database. One transaction re-encrypts
everything that is stored, so that after a crash the vault has either the old key or the new one.
Then the old key is destroyed. Key backups from before can still be restored into this vault.")]
    Reseal(master::ResealArgs),
    /// Delete a key vault; it can be recovered during its retention period
    #[command(after_help = "Example:
  sealdisk keyvault delete myvault --yes
  sealdisk keyvault delete myvault --force --yes

From then on the vault refuses every use of its keys, also to attached disks. While disks or sets
use its keys, --force is needed. A vault whose files are gone is given up with --force: it leaves the
catalog at once, and what is left of it is put aside.")]
    Delete(lifecycle::DeleteArgs),
    /// List the deleted key vaults
    #[command(after_help = "Example:\n  sealdisk keyvault list-deleted")]
    ListDeleted,
    /// Recover a deleted key vault with its keys, policies and audit log
    #[command(after_help = "Example:\n  sealdisk keyvault recover myvault")]
    Recover(lifecycle::NameArgs),
    /// Destroy a deleted key vault for good: nothing that its keys wrapped can be read again
    #[command(after_help = "Example:\n  sealdisk keyvault purge myvault --yes")]
    Purge(lifecycle::PurgeArgs),
    /// Connect a remote key vault: one of Azure, or of another installation
    #[command(after_help = "Example:
  sealdisk keyvault connect myvault --url https://myvault.vault.azure.net
  sealdisk keyvault connect far --url https://far.vault.localhost:8443 --ca-file ca.pem

Manage its keys and policies where the vault is kept. Connecting it again replaces the CA file.")]
    Connect(connect::ConnectArgs),
    /// Disconnect a remote key vault that no disk encryption set needs
    #[command(after_help = "Example:\n  sealdisk keyvault disconnect far")]
    Disconnect(connect::DisconnectArgs),
    /// Serve all key vaults over HTTPS, with the REST API of Azure Key Vault, until SIGTERM
    #[command(after_help = "Example:
  sealdisk identity create backup-job --secret-file backup-job.secret
  sealdisk keyvault serve --listen 127.0.0.1:8443
  REQUESTS_CA_BUNDLE=/var/lib/sealdisk/tls/ca.pem IDENTITY_ENDPOINT=https://localhost:8443/msi/token \\
    IDENTITY_HEADER=$(cat backup-job.secret) python3 backup.py")]
    Serve(serve::ServeArgs),
    /// Rotate the keys and purge the deleted keys that are due
    #[command(after_help = "Example:
  sealdisk keyvault run-due

`keyvault serve` does this by itself. Without it, run this from a timer.")]
    RunDue,
    /// Manage the keys of a vault
    Key(key::KeyArgs),
}

#[derive(Args)]
struct NameArgs {
    /// The key vault
    name: String,
}

#[derive(Args)]
struct CreateArgs {
    /// The key vault
    name: String,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    hsm: HsmOptions,
    #[command(flatten)]
    master: master::MasterOptions,
}

#[derive(Args)]
struct UpdateArgs {
    /// The key vault
    name: String,
    /// Recorded operations that one identity may do in 10 seconds [default: 4000]
    #[arg(long, value_name = "N")]
    operations_limit: Option<u32>,
    #[command(flatten)]
    network: network::NetworkOptions,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Take the word of a vault that was restored, or made in the place of a lost one, for it that a key or permission
    /// that it does not know does not exist
    #[arg(long)]
    complete: bool,
}

#[derive(Args)]
struct SettingsArgs {
    /// Days in which a deleted key can be recovered: 7 to 90 [default: 90]. Set when a vault is
    /// created, and never changed
    #[arg(long, value_name = "DAYS")]
    retention_days: Option<u32>,
    /// Let nobody purge a deleted key before its retention period is over
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    enable_purge_protection: Option<bool>,
}

impl SettingsArgs {
    /// What is given, in place of what is so now.
    fn over(&self, now: VaultSettings) -> VaultSettings {
        VaultSettings {
            retention_days: self.retention_days.unwrap_or(now.retention_days),
            purge_protection: self.enable_purge_protection.unwrap_or(now.purge_protection),
        }
    }
}

#[derive(Args)]
struct SetPolicyArgs {
    /// The key vault
    name: String,
    /// The identity, as `disk-encryption-set show` prints it in identity.principalId
    #[arg(long, value_parser = parse_object_id)]
    object_id: Uuid,
    /// Its key permissions: all, or some of get list create import update wrapKey unwrapKey …
    #[arg(long, required = true, num_args = 1.., value_name = "PERMISSION")]
    key_permissions: Vec<String>,
}

#[derive(Args)]
struct DeletePolicyArgs {
    /// The key vault
    name: String,
    /// The identity
    #[arg(long, value_parser = parse_object_id)]
    object_id: Uuid,
}

fn parse_object_id(text: &str) -> Result<Uuid, String> {
    text.parse().map_err(|_| {
        "give the principalId of an identity, as `disk-encryption-set show` or `identity show` prints it: \
         6f0d2c1e-6f9b-4d6f-9a57-2f2a6b1d0c55"
            .into()
    })
}

pub fn run(context: &Context, args: KeyvaultArgs) -> Result<(), CliError> {
    let installation = context.installation()?;
    if let KeyvaultCommand::Serve(args) = args.command {
        return serve::run(context, installation, args, None);
    }
    dispatch(context, &installation, args.command)?;
    // A token that hangs must not keep the command itself waiting.
    installation.finish_due_purges();
    Ok(())
}

fn dispatch(
    context: &Context,
    installation: &Installation,
    command: KeyvaultCommand,
) -> Result<(), CliError> {
    match command {
        // It takes the installation with it.
        KeyvaultCommand::Serve(_) => Ok(()),
        KeyvaultCommand::Create(args) => {
            let settings = args.settings.over(VaultSettings::default());
            let (hsm, master) = (args.hsm.settings()?, args.master.place()?);
            installation
                .catalog()
                .forget_left(Kind::Vault, &args.name)?;
            let vault =
                installation.create_vault_with(&args.name, &settings, hsm, master.as_ref())?;
            if let Some(said) = vault_notice(installation, &vault) {
                context.output.note(&said);
            }
            context.output.show(&view(&vault)?)
        }
        KeyvaultCommand::Update(args) => {
            let vault = unlocked(installation, &args.name)?;
            let settings = args.settings.over(vault.settings()?);
            vault.update_settings(&installation.operator(), &settings)?;
            if let Some(limit) = args.operations_limit {
                vault.set_operations_limit(&installation.operator(), limit)?;
            }
            if args.complete {
                vault.clear_incomplete(&installation.operator())?;
            }
            args.network.apply(installation, &vault)?;
            context.output.show(&view(&vault)?)
        }
        KeyvaultCommand::RunDue => run_due(context, installation),
        KeyvaultCommand::List => list(context, installation),
        KeyvaultCommand::Show(args) => {
            let record = installation
                .catalog()
                .vault(&args.name.to_ascii_lowercase())?
                .record;
            if record.kind.is_remote() {
                return context.output.show(&VaultView::from(record));
            }
            let vault = installation.vault(&args.name)?;
            context.output.show(&view(&vault)?)
        }
        KeyvaultCommand::SetPolicy(args) => {
            let permissions: Permissions = args.key_permissions.join(" ").parse()?;
            let _lock = installation.lock_policies()?;
            refuse_roles(installation, &args.name)?;
            let vault = unlocked(installation, &args.name)?;
            vault.set_policy(&installation.operator(), args.object_id, &permissions)?;
            context.output.show(&view(&vault)?)
        }
        KeyvaultCommand::DeletePolicy(args) => {
            let _lock = installation.lock_policies()?;
            refuse_roles(installation, &args.name)?;
            let vault = unlocked(installation, &args.name)?;
            vault.delete_policy(&installation.operator(), args.object_id)?;
            context.output.show(&view(&vault)?)
        }
        KeyvaultCommand::NetworkRule(args) => network::run(context, installation, args),
        KeyvaultCommand::AuditLog(args) => {
            let log = installation.vault(&args.name)?.audit_log()?;
            let view = |entry| EntryView::new(None, entry);
            let views: Vec<EntryView> = log.into_iter().map(view).collect();
            context.output.list(&views)
        }
        KeyvaultCommand::Reseal(args) => master::reseal(context, installation, args),
        KeyvaultCommand::Delete(args) => lifecycle::delete(context, installation, &args),
        KeyvaultCommand::ListDeleted => lifecycle::list_deleted(context, installation),
        KeyvaultCommand::Recover(args) => {
            arm::roles::recover(installation, &args.name)?;
            context
                .output
                .show(&view(&installation.vault(&args.name)?)?)
        }
        KeyvaultCommand::Purge(args) => lifecycle::purge(context, installation, &args),
        KeyvaultCommand::Connect(args) => {
            let record = connect::connect(installation, args)?;
            units::note_network(context);
            context.output.show(&VaultView::from(record))
        }
        KeyvaultCommand::Disconnect(args) => connect::disconnect(context, installation, &args),
        KeyvaultCommand::Key(args) => key::run(context, installation, args),
    }
}

/// The policies of a vault that is governed by roles follow from those.
fn refuse_roles(installation: &Installation, vault: &str) -> Result<(), CliError> {
    if !arm::roles::has_roles(installation, vault)? {
        return Ok(());
    }
    Err(CliError::new(
        "OperationNotAllowed",
        format!(
            "the key vault '{vault}' is governed by roles (enableRbacAuthorization), from which its policies follow: \
             use `sealdisk role assignment create`"
        ),
    ))
}

fn list(context: &Context, installation: &Installation) -> Result<(), CliError> {
    let deleted = installation.deleted_vaults()?;
    let views: Vec<VaultView> = installation
        .catalog()
        .vaults()?
        .into_iter()
        .filter(|vault| deleted.iter().all(|gone| gone.name != vault.record.name))
        .map(|vault| VaultView::from(vault.record))
        .collect();
    context.output.list(&views)
}
