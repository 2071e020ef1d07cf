//! Vaults that commands change.

use crate::cli::CliError;
use installation::Installation;
use installation::catalog::{Change, Kind};
use vault::EmbeddedVault;

/// A vault that no management lock keeps from being changed.
pub(super) fn unlocked(installation: &Installation, name: &str) -> Result<EmbeddedVault, CliError> {
    let vault = installation.vault(name)?;
    let catalog = installation.catalog();
    catalog.refuse_locked(Kind::Vault, name, Change::Write)?;
    Ok(vault)
}
