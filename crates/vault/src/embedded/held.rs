//! The master key that a process has of a vault.

use crate::master::{MasterKey, MasterSource};
use crate::place::VaultPlace;
use crate::store::VaultRow;
use crate::{VaultError, VaultErrorCode};

/// The master key that this process has, and what tells whether it is still the vault's.
pub(super) struct Held {
    pub check: Vec<u8>,
    pub key: MasterKey,
}

/// The master key of a vault, which is refused when it is another one.
pub(super) fn load_master(place: &VaultPlace, row: &VaultRow) -> Result<MasterKey, VaultError> {
    let (dir, name) = (place.dir(), &row.name);
    if place.is_shared() {
        refuse_missing(place, row)?;
    }
    let master = MasterKey::load(dir, name, row.master.as_ref())?;
    if master.check_value(row.id)?.as_slice() == row.master_check {
        return Ok(master);
    }
    let source = match &row.master {
        Some(source) => source.describe(),
        None => format!(
            "{} or the systemd credential sealdisk-vault-{name}",
            dir.join("master.key").display()
        ),
    };
    let message = match place.is_shared() {
        false => format!(
            "the master key is not the one that the key vault '{name}' has; restore {source}"
        ),
        true => format!(
            "the master key that this host has is not the one that the key vault '{name}' has: it is that of an earlier \
             vault of that name, or from before `sealdisk keyvault reseal`; copy {source} from a host that can open it"
        ),
    };
    Err(VaultError::new(VaultErrorCode::MasterKey, message))
}

/// Says of a vault that hosts share how this one gets its master key, which it has not got yet.
fn refuse_missing(place: &VaultPlace, row: &VaultRow) -> Result<(), VaultError> {
    let (dir, name) = (place.dir(), &row.name);
    let Some(file) = MasterKey::expected_file(dir, name, row.master.as_ref()) else {
        return Ok(());
    };
    if file.exists() {
        return Ok(());
    }
    let file = file.display();
    let how = match &row.master {
        None => format!(
            "copy {file} from a host that can open it (mode 0600), or give this process the same key as the systemd \
             credential sealdisk-vault-{name}"
        ),
        Some(MasterSource::Beside { .. } | MasterSource::File { .. }) => {
            format!("copy {file} from a host that can open it (mode 0600)")
        }
        Some(MasterSource::Credential { name }) => format!(
            "give this process the systemd credential {name} (LoadCredentialEncrypted={name}) with the same key"
        ),
        Some(MasterSource::Tpm2 { .. }) => format!(
            "it is sealed to the TPM of another host; `sealdisk keyvault reseal {name} --master-key-file FILE` there has \
             it in a file, which is then copied here"
        ),
    };
    Err(VaultError::new(
        VaultErrorCode::MasterKey,
        format!("this host has not got the master key of the key vault '{name}' yet: {how}"),
    ))
}
