//! Where master keys are: the options of `keyvault create`, and `sealdisk keyvault reseal`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::cli::files::absolute;
use crate::cli::{CliError, Context, Tabular};
use installation::Installation;
use vault::{MasterPlace, MasterSource};

/// Where a new master key is to be.
#[derive(Args)]
#[command(next_help_heading = "The master key")]
pub(super) struct MasterOptions {
    /// Keep it in this file (32 bytes, mode 0600), which is created unless it exists
    #[arg(long, value_name = "FILE", conflicts_with_all = ["master_credential", "tpm2"])]
    master_key_file: Option<PathBuf>,
    /// Take it from this systemd credential, which every process that opens the vault needs
    #[arg(long, value_name = "NAME", conflicts_with = "tpm2")]
    master_credential: Option<String>,
    /// Seal it to this host's TPM 2.0 (needs tpm2-tools)
    #[arg(long)]
    tpm2: bool,
    /// Bind it to the current values of these PCRs, for example sha256:7
    #[arg(long, value_name = "PCRS", requires = "tpm2")]
    tpm2_pcrs: Option<String>,
    /// The TPM, in the form of TPM2TOOLS_TCTI, for example device:/dev/tpmrm0
    #[arg(long, value_name = "TCTI", requires = "tpm2")]
    tpm2_device: Option<String>,
}

impl MasterOptions {
    /// `None` when nothing was said.
    pub(super) fn place(self) -> Result<Option<MasterPlace>, CliError> {
        if self.tpm2 {
            return Ok(Some(MasterPlace::Tpm2 {
                pcrs: self.tpm2_pcrs,
                device: self.tpm2_device,
            }));
        }
        if let Some(path) = self.master_key_file {
            let path = absolute("--master-key-file", &path)?;
            return Ok(Some(MasterPlace::File(path)));
        }
        Ok(self.master_credential.map(MasterPlace::Credential))
    }
}

#[derive(Args)]
pub(super) struct ResealArgs {
    /// The key vault
    #[arg(required_unless_present = "all")]
    name: Option<String>,
    /// All key vaults of this installation
    #[arg(long, conflicts_with = "name")]
    all: bool,
    #[command(flatten)]
    master: MasterOptions,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResealedView {
    name: String,
    master_key: String,
    /// What still has the old master key.
    old_master_key: Option<String>,
}

impl Tabular for ResealedView {
    const COLUMNS: &'static [&'static str] = &["name", "masterKey", "oldMasterKey"];

    fn cells(&self) -> Vec<String> {
        let old = self.old_master_key.clone();
        vec![
            self.name.clone(),
            self.master_key.clone(),
            old.unwrap_or_else(|| "destroyed".into()),
        ]
    }
}

pub(super) fn reseal(
    context: &Context,
    installation: &Installation,
    args: ResealArgs,
) -> Result<(), CliError> {
    let names = match args.name {
        Some(name) => vec![name],
        None => {
            let vaults = installation.catalog().vaults()?.into_iter();
            vaults
                .map(|vault| vault.record)
                .filter(|record| !record.kind.is_remote())
                .map(|record| record.name)
                .collect()
        }
    };
    let place = args.master.place()?.unwrap_or(MasterPlace::Beside);
    let mut views = Vec::new();
    let mut failed = None;
    for name in names {
        // One that fails stays under its old key and keeps none of the others.
        match installation.reseal_vault(&name, &place) {
            Ok(resealed) => {
                if let Some(left) = &resealed.left {
                    context
                        .output
                        .note(&removal(&name, left, resealed.is_on_server));
                }
                views.push(ResealedView {
                    name,
                    master_key: resealed.master.describe(),
                    old_master_key: resealed.left.map(|left| left.describe()),
                });
            }
            Err(error) => {
                let mut error = CliError::from(error);
                error.message = format!("key vault '{name}': {}", error.message);
                failed = Some(error);
            }
        }
    }
    match failed {
        Some(error) if views.is_empty() => Err(error),
        failed => {
            context.output.list(&views)?;
            failed.map_or(Ok(()), Err)
        }
    }
}

/// What is not ours to remove.
fn removal(name: &str, left: &MasterSource, is_on_server: bool) -> String {
    let how = match left {
        MasterSource::File { path } => format!("`shred -u {}`", path.display()),
        _ => "remove it from the unit and the credential store".into(),
    };
    // A standby that was behind, or a backup, has what is under the old key.
    let when = match is_on_server {
        true => "once every standby and backup of the server has the change, and if",
        false => "if",
    };
    format!(
        "note: the old master key of the key vault '{name}' is still {}; {when} no other vault needs it: {how}",
        left.describe()
    )
}
