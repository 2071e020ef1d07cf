//! Remote vaults: `sealdisk keyvault connect` and `disconnect`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::{CliError, Context};
use installation::Installation;
use installation::catalog::VaultRecord;

#[derive(Args)]
#[allow(rustdoc::bare_urls, reason = "the help text shows it as it is")]
pub(super) struct ConnectArgs {
    /// The key vault's name in this installation
    pub(super) name: String,
    /// Its URL, as https://NAME.vault.azure.net or https://NAME.vault.localhost:8443
    #[arg(long)]
    url: String,
    /// Trust only TLS certificates signed by a CA in this file (PEM), instead of the system's CAs
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Where its installation gives tokens to identities of this one that it trusts, as
    /// https://HOST:8443/adfs/oauth2/v2.0/token of `sealdisk serve`
    #[arg(long, value_name = "URL")]
    token_endpoint: Option<String>,
}

#[derive(Args)]
pub(super) struct DisconnectArgs {
    /// The key vault
    pub(super) name: String,
}

/// Longest CA file that is read: hundreds of certificates.
const CA_LIMIT: u64 = 1 << 20;

pub(super) fn connect(
    installation: &Installation,
    args: ConnectArgs,
) -> Result<VaultRecord, CliError> {
    let ca = args.ca_file.map(read_ca).transpose()?;
    Ok(installation.connect_vault(&args.name, &args.url, ca, args.token_endpoint)?)
}

pub(super) fn disconnect(
    context: &Context,
    installation: &Installation,
    args: &DisconnectArgs,
) -> Result<(), CliError> {
    installation.disconnect_vault(&args.name, disks::reconcile)?;
    context
        .output
        .note(&format!("the key vault '{}' is disconnected", args.name));
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
