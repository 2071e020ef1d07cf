//! The master key that a process has of a vault.

use std::path::Path;

use crate::master::MasterKey;
use crate::store::VaultRow;
use crate::{VaultError, VaultErrorCode};

/// The master key that this process has, and what tells whether it is still the vault's.
pub(super) struct Held {
    pub check: Vec<u8>,
    pub key: MasterKey,
}

/// The master key of a vault, which is refused when it is another one.
pub(super) fn load_master(dir: &Path, row: &VaultRow) -> Result<MasterKey, VaultError> {
    let name = &row.name;
    let master = MasterKey::load(dir, name, row.master.as_ref())?;
    if master.check_value(row.id)?.as_slice() == row.master_check {
        return Ok(master);
    }
    let place = match &row.master {
        Some(source) => source.describe(),
        None => format!(
            "{} or the systemd credential sealdisk-vault-{name}",
            dir.join("master.key").display()
        ),
    };
    Err(VaultError::new(
        VaultErrorCode::MasterKey,
        format!("the master key is not the one that the key vault '{name}' has; restore {place}"),
    ))
}
