//! The master key that a process has of a vault, and following to another one.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use rusqlite::Connection;
use zeroize::Zeroizing;

use super::EmbeddedVault;
use crate::master::{MasterKey, Slot};
use crate::store::{self, KeyRow, VaultRow};
use crate::{VaultError, VaultErrorCode};

/// The master key that this process has, and what tells whether it is still the vault's.
pub(super) struct Held {
    pub check: Vec<u8>,
    pub key: MasterKey,
}

impl EmbeddedVault {
    /// The stored private part of a version. That it opens shows that the public part is its own.
    pub(super) fn material(&self, row: &KeyRow) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let slot = Slot {
            vault: self.id,
            key: &row.name,
            version: &row.version,
            n: &row.n,
            e: &row.e,
        };
        match self.held().key.open(&slot, &row.sealed) {
            Err(e) if e.code == VaultErrorCode::Tampered => {}
            opened => return opened,
        }
        // Another process may have given the vault a new master key since the row was read.
        let sealed = self.read(|db| {
            self.follow_master(db)?;
            store::sealed(db, &row.name, &row.version)
        })?;
        let sealed = sealed.as_deref().unwrap_or(&row.sealed);
        self.held().key.open(&slot, sealed)
    }

    pub(super) fn held(&self) -> Arc<Held> {
        Arc::clone(&self.master.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has the master key that the vault has now. In a transaction that holds the write lock it stays
    /// the vault's until that ends.
    pub(super) fn follow_master(&self, db: &Connection) -> Result<(), VaultError> {
        let row = self.row_in(db)?;
        if row.master_check == self.held().check {
            return Ok(());
        }
        let key = load_master(self.dir(), &row)?;
        let check = row.master_check;
        *self.master.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(Held { check, key });
        Ok(())
    }

    pub(super) fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }
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
