//! Following a vault to another master key.

use std::sync::{Arc, PoisonError};

use database::Connection;
use zeroize::Zeroizing;

use super::held::{Held, load_master};
use super::vault::EmbeddedVault;
use crate::master::Slot;
use crate::store::{self, KeyRow};
use crate::{VaultError, VaultErrorCode};

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

    /// Has the master key that the vault has now. In a transaction that changes something it stays the vault's until
    /// that ends, or that comes to nothing.
    pub(super) fn follow_master(&self, db: &Connection) -> Result<(), VaultError> {
        let row = self.row_in(db)?;
        if row.master_check == self.held().check {
            return Ok(());
        }
        let key = load_master(&self.place, &row)?;
        let check = row.master_check;
        *self.master.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(Held { check, key });
        Ok(())
    }
}
