//! The logs of an installation: one of each vault, and its own.

use clap::Args;

use crate::cli::CliError;
use installation::{INSTALLATION_LOG, Installation, vault_log_name};
use vault::EmbeddedVault;
use vault::audit::AuditLog;

#[derive(Args)]
#[group(multiple = false)]
pub(super) struct WhichArgs {
    /// Only the log of this key vault [default: all logs]
    #[arg(long, value_name = "NAME")]
    pub(super) vault: Option<String>,
    /// Only the installation's own log: DEKs handed out and destroyed, changes of sets
    #[arg(long)]
    pub(super) installation: bool,
}

/// A log of this installation.
pub(super) enum Log {
    Vault(Box<EmbeddedVault>),
    Installation(Box<AuditLog>),
}

impl Log {
    /// What an export calls it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Vault(vault) => vault_log_name(vault.name()),
            Self::Installation(_) => INSTALLATION_LOG.into(),
        }
    }
}

pub(super) type Logs = Vec<(String, Result<Log, CliError>)>;

/// The logs that are meant; one that cannot be opened is there with its error.
pub(super) fn logs(installation: &Installation, which: &WhichArgs) -> Result<Logs, CliError> {
    let mut logs = Logs::new();
    if let Some(name) = &which.vault {
        let name = name.to_ascii_lowercase();
        let vault = installation.vault(&name).map(|v| Log::Vault(v.into()));
        return Ok(vec![(vault_log_name(&name), vault.map_err(CliError::from))]);
    }
    if !which.installation {
        for vault in installation.catalog().vaults()? {
            // A remote vault keeps its own log.
            if vault.record.kind.is_remote() {
                continue;
            }
            let name = vault.record.name;
            let vault = installation.vault(&name).map(|v| Log::Vault(v.into()));
            logs.push((vault_log_name(&name), vault.map_err(CliError::from)));
        }
    }
    let own = installation
        .audit_log()
        .map(|log| Log::Installation(log.into()));
    logs.push((INSTALLATION_LOG.into(), own.map_err(CliError::from)));
    Ok(logs)
}
