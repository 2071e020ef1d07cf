//! Vaults that are not all here: `sealdisk keyvault connect` and `disconnect`, and the options of
//! vaults whose private keys are in a token.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{CliError, Context};
use installation::Installation;
use installation::catalog::{HsmSettings, VaultRecord};

#[derive(Args)]
#[allow(rustdoc::bare_urls, reason = "the help text shows it as it is")]
pub(super) struct ConnectArgs {
    /// The name that the key vault has here
    pub(super) name: String,
    /// Its URL, as https://NAME.vault.azure.net or https://NAME.vault.localhost:8443
    #[arg(long)]
    url: String,
    /// The certificates (PEM) that alone vouch for it, instead of those that this system trusts
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct DisconnectArgs {
    /// The key vault
    pub(super) name: String,
}

/// The token in which a new vault's private keys will be.
#[derive(Args)]
pub(super) struct HsmOptions {
    /// Keep the private keys in a hardware security module: its PKCS#11 library
    #[arg(long, value_name = "FILE", requires = "hsm_token")]
    hsm_module: Option<PathBuf>,
    /// The label of the token in it
    #[arg(long, value_name = "LABEL", requires = "hsm_module")]
    hsm_token: Option<String>,
    /// The file (mode 0600) with the PIN of the token's user; without it, the systemd credential
    /// sealdisk-hsm-NAME
    #[arg(long, value_name = "FILE", requires = "hsm_module")]
    hsm_pin_file: Option<PathBuf>,
}

impl HsmOptions {
    /// `None` for a vault that keeps its private keys itself.
    pub(super) fn settings(self) -> Result<Option<HsmSettings>, CliError> {
        let (Some(module), Some(token)) = (self.hsm_module, self.hsm_token) else {
            return Ok(None);
        };
        Ok(Some(HsmSettings {
            module: absolute("--hsm-module", &module)?,
            token,
            pin_file: self
                .hsm_pin_file
                .map(|path| absolute("--hsm-pin-file", &path))
                .transpose()?,
        }))
    }
}

/// What is recorded must mean the same from every working directory.
pub(super) fn absolute(option: &str, path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path)
        .map_err(|e| CliError::usage(format!("{option} {}: {e}", path.display())))
}

/// Longest CA file that is read: hundreds of certificates.
const CA_LIMIT: u64 = 1 << 20;

pub(super) fn connect(
    installation: &Installation,
    args: ConnectArgs,
) -> Result<VaultRecord, CliError> {
    let ca = args.ca_file.map(read_ca).transpose()?;
    Ok(installation.connect_vault(&args.name, &args.url, ca)?)
}

pub(super) fn disconnect(
    context: &Context,
    installation: &Installation,
    args: &DisconnectArgs,
) -> Result<(), CliError> {
    installation.disconnect_vault(&args.name, disks::reconcile)?;
    context.output.note(&format!(
        "the key vault '{}' is not known here any more",
        args.name
    ));
    Ok(())
}

fn read_ca(path: PathBuf) -> Result<String, CliError> {
    let fail = |e: &dyn std::fmt::Display| {
        CliError::usage(format!("cannot read the CA file {}: {e}", path.display()))
    };
    let size = std::fs::metadata(&path).map_err(|e| fail(&e))?.len();
    if size > CA_LIMIT {
        return Err(fail(&"it is larger than 1 MiB"));
    }
    std::fs::read_to_string(&path).map_err(|e| fail(&e))
}
