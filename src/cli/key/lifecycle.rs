//! `sealdisk keyvault key`: what ends keys and what brings them back, and their rotation.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::what_if;
use crate::cli::output::time_cell;
use crate::cli::{CliError, Context, Tabular};
use installation::Installation;
use vault::{DeletedKey, KeyUrl, RotationPolicy};

/// Largest backup or policy that is read: some hundred versions of a key.
const FILE_LIMIT: u64 = 16 << 20;

#[derive(Subcommand)]
pub(super) enum LifecycleCommand {
    /// Delete a key with all its versions; it can be recovered during its retention period
    #[command(after_help = "Example:
  sealdisk keyvault key delete mykey --vault-name myvault

Disks under the key stop at their next key check and cannot be attached until it is recovered. The
command warns unless that is safe, and asks on a terminal.")]
    Delete(ConfirmArgs),
    /// List the deleted keys that can still be recovered
    #[command(after_help = "Example:
  sealdisk keyvault key list-deleted --vault-name myvault")]
    ListDeleted(VaultArgs),
    /// Show a deleted key, and when it will be purged
    #[command(after_help = "Example:
  sealdisk keyvault key show-deleted mykey --vault-name myvault")]
    ShowDeleted(NameArgs),
    /// Recover a deleted key
    #[command(after_help = "Example:
  sealdisk keyvault key recover mykey --vault-name myvault")]
    Recover(NameArgs),
    /// Destroy a deleted key for good
    #[command(after_help = "Example:
  sealdisk keyvault key purge mykey --vault-name myvault

Nothing that the key has wrapped can be read again, unless there is a backup of it.")]
    Purge(ConfirmArgs),
    /// Write a backup of a key with all its versions, encrypted under the vault's master key
    #[command(after_help = "Example:
  sealdisk keyvault key backup mykey --vault-name myvault --file mykey.backup

It can be restored only into this vault, or into one that has the same master key.")]
    Backup(FileArgs),
    /// Restore a key from a backup
    #[command(after_help = "Example:
  sealdisk keyvault key restore --vault-name myvault --file mykey.backup")]
    Restore(RestoreArgs),
    /// Create a new version of a key now
    #[command(after_help = "Example:
  sealdisk keyvault key rotate mykey --vault-name myvault")]
    Rotate(NameArgs),
    /// Manage the rotation policy of a key
    RotationPolicy(RotationPolicyArgs),
}

#[derive(Args)]
pub(super) struct VaultArgs {
    /// The vault
    #[arg(long)]
    vault_name: String,
}

#[derive(Args)]
pub(super) struct NameArgs {
    /// The key
    name: String,
    /// Its vault
    #[arg(long)]
    vault_name: String,
}

#[derive(Args)]
pub(super) struct ConfirmArgs {
    #[command(flatten)]
    key: NameArgs,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
}

#[derive(Args)]
pub(super) struct FileArgs {
    #[command(flatten)]
    key: NameArgs,
    /// The new file for the backup
    #[arg(long, short, value_name = "FILE")]
    file: PathBuf,
}

#[derive(Args)]
pub(super) struct RestoreArgs {
    /// The vault
    #[arg(long)]
    vault_name: String,
    /// The file with the backup
    #[arg(long, short, value_name = "FILE")]
    file: PathBuf,
}

#[derive(Args)]
pub(super) struct RotationPolicyArgs {
    #[command(subcommand)]
    command: RotationPolicyCommand,
}

#[derive(Subcommand)]
enum RotationPolicyCommand {
    /// Show the rotation policy of a key
    #[command(after_help = "Example:
  sealdisk keyvault key rotation-policy show mykey --vault-name myvault -o json")]
    Show(NameArgs),
    /// Replace the rotation policy of a key
    #[command(after_help = r#"Example:
  sealdisk keyvault key rotation-policy update mykey --vault-name myvault --value policy.json

policy.json has the form of the Azure CLI:
  {"lifetimeActions": [{"trigger": {"timeAfterCreate": "P90D"}, "action": {"type": "Rotate"}}],
   "attributes": {"expiryTime": "P2Y"}}

`keyvault serve` applies policies by itself; `keyvault run-due` applies them once."#)]
    Update(PolicyUpdateArgs),
}

#[derive(Args)]
struct PolicyUpdateArgs {
    #[command(flatten)]
    key: NameArgs,
    /// The policy as JSON, or a file with it
    #[arg(long, value_name = "JSON|FILE")]
    value: String,
}

impl Tabular for DeletedKey {
    const COLUMNS: &'static [&'static str] = &["name", "deletedDate", "scheduledPurgeDate"];

    const FIELDS: &'static [&'static str] = &[
        "key",
        "attributes",
        "tags",
        "recoveryId",
        "deletedDate",
        "scheduledPurgeDate",
    ];

    fn cells(&self) -> Vec<String> {
        let kid = &self.bundle.key.kid;
        let name = kid.parse().map_or(kid.clone(), |url: KeyUrl| url.key.name);
        vec![
            name,
            time_cell(Some(self.deleted)),
            time_cell(Some(self.scheduled_purge)),
        ]
    }
}

pub(super) fn run(
    context: &Context,
    installation: &Installation,
    command: LifecycleCommand,
) -> Result<(), CliError> {
    let operator = installation.operator();
    let output = &context.output;
    let vault = |args: &NameArgs| installation.vault(&args.vault_name);
    match command {
        LifecycleCommand::Delete(ConfirmArgs { key, yes }) => {
            let vault = vault(&key)?;
            if !yes {
                let safety = disks::des::what_if_deleted(installation, &key.vault_name, &key.name);
                what_if::warn(output, "delete this key", safety)?;
            }
            output.show(&vault.delete_key(&operator, &key.name)?)
        }
        LifecycleCommand::ListDeleted(args) => {
            let vault = installation.vault(&args.vault_name)?;
            output.list(&vault.deleted_keys(&operator)?)
        }
        LifecycleCommand::ShowDeleted(key) => {
            output.show(&vault(&key)?.deleted_key(&operator, &key.name)?)
        }
        LifecycleCommand::Recover(key) => {
            output.show(&vault(&key)?.recover_key(&operator, &key.name)?)
        }
        LifecycleCommand::Purge(ConfirmArgs { key, yes }) => {
            let vault = vault(&key)?;
            let name = &key.name;
            if let Some(why) = disks::des::refused_purge(installation, &key.vault_name, name)? {
                return Err(CliError::usage(why));
            }
            output.confirm(
                &format!("nothing that the key '{name}' has wrapped can be read again; purge it?"),
                yes,
            )?;
            Ok(vault.purge_key(&operator, name)?)
        }
        LifecycleCommand::Backup(args) => {
            let backup = vault(&args.key)?.backup_key(&operator, &args.key.name)?;
            write_new(&args.file, &backup)
        }
        LifecycleCommand::Restore(args) => {
            let vault = installation.vault(&args.vault_name)?;
            output.show(&vault.restore_key(&operator, &read(&args.file)?)?)
        }
        LifecycleCommand::Rotate(key) => {
            output.show(&vault(&key)?.rotate_key(&operator, &key.name)?)
        }
        LifecycleCommand::RotationPolicy(args) => match args.command {
            RotationPolicyCommand::Show(key) => {
                output.show(&vault(&key)?.rotation_policy(&operator, &key.name)?)
            }
            RotationPolicyCommand::Update(PolicyUpdateArgs { key, value }) => {
                let policy = parse_policy(&value)?;
                output.show(&vault(&key)?.set_rotation_policy(&operator, &key.name, &policy)?)
            }
        },
    }
}

/// JSON itself, or a file with it, as the Azure CLI takes it.
fn parse_policy(value: &str) -> Result<RotationPolicy, CliError> {
    let text = match value.trim_start().starts_with('{') {
        true => value.as_bytes().to_vec(),
        false => read(Path::new(value))?,
    };
    serde_json::from_slice(&text).map_err(|e| {
        CliError::new(
            "BadParameter",
            format!("the rotation policy is not acceptable: {e}"),
        )
    })
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    let fail = |e: &dyn std::fmt::Display| {
        let message = format!("cannot read the file {}: {e}", path.display());
        CliError::new("BadParameter", message)
    };
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_LIMIT + 1).read_to_end(&mut bytes));
    match read {
        Err(e) => Err(fail(&e)),
        Ok(length) if length as u64 > FILE_LIMIT => Err(fail(&"it is too long")),
        Ok(_) => Ok(bytes),
    }
}

/// Writes a file that must not be there yet, so that no earlier backup is lost; a failure leaves
/// none.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let fail = |e: std::io::Error| {
        let message = format!("cannot write the file {}: {e}", path.display());
        CliError::new("OutputError", message)
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(fail)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(|e| {
            // What is there is half of a backup.
            let _ = fs::remove_file(path);
            fail(e)
        })
}
