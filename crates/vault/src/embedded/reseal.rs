//! Giving a vault another master key.
//!
//! # Order of steps
//!
//! Under a `flock` of the vault's directory:
//!
//! 1. files of master keys that the database does not name are destroyed: a reseal that was cut off has
//!    left them;
//! 2. the new key is made in its place, under a name of its own, and is durable;
//! 3. one transaction encrypts every stored key, the signing key of the audit log and the keys of earlier
//!    backups under the new key, and names the new place. Before it commits the vault is under the old
//!    key, which is untouched; after, under the new one;
//! 4. what the write-ahead log and free pages had under the old key is overwritten;
//! 5. the old key is destroyed.
//!
//! Killed before the commit, step 1 of the next reseal removes the new key; killed after it, the old one.
//! Other processes that have the vault open see in their next transaction that the key is another one, and
//! load it.

use rusqlite::Connection;

use super::held::Held;
use super::subject::Subject;
use super::vault::EmbeddedVault;
use crate::master::{
    DEFAULT_FILE, MasterKey, MasterPlace, MasterSource, Slot, default_source, destroy, is_own_file,
};
use crate::store;
use crate::{Caller, VaultError, VaultErrorCode};
use keys::SealingKey;

/// What became of a vault's master key.
#[derive(Debug)]
pub struct Resealed {
    /// Where it is now.
    pub master: MasterSource,
    /// What still has the old key, which is the owner's to remove; nothing when it was destroyed.
    pub left: Option<MasterSource>,
}

impl EmbeddedVault {
    /// Where the vault's master key is; `None` for a vault that was never given a choice.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn master_source(&self) -> Result<Option<MasterSource>, VaultError> {
        self.read(|db| Ok(self.row_in(db)?.master))
    }

    /// The master key itself, for a backup that is to have it.
    pub fn expose_master_key(&self) -> zeroize::Zeroizing<Vec<u8>> {
        zeroize::Zeroizing::new(self.held().key.expose().to_vec())
    }

    /// Gives the vault a new master key in that place, and destroys the old one.
    ///
    /// # Errors
    /// [`VaultErrorCode::MasterKey`] when the new one is unavailable; the vault is as it was then.
    pub fn reseal(&self, caller: &Caller, place: &MasterPlace) -> Result<Resealed, VaultError> {
        let dir = self.dir().to_owned();
        let fail = |e: std::io::Error| {
            let what = format!("cannot use {}", dir.display());
            VaultError::caused(VaultErrorCode::Internal, what, e)
        };
        let lock = std::fs::File::open(&dir).map_err(fail)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|e| fail(e.into()))?;
        let before = self.master_source()?;
        self.destroy_unnamed(before.as_ref())?;
        let (new, source) = place.make(&dir)?;
        let subject = Subject {
            detail: Some(format!("the master key is {}", source.describe())),
            ..Subject::vault("VaultReseal")
        };
        let changed = self.audited(caller, &subject, |db| {
            let check = new.check_value(self.id)?.to_vec();
            if check != self.held().check {
                self.encrypt_under(db, &new)?;
            }
            store::set_master(db, &check, &source)?;
            Ok(check)
        });
        let check = match changed {
            Ok(check) => check,
            Err(e) => {
                // A key that nothing is under; a file that was there before is the owner's.
                if let Some(file) = source.own_file() {
                    destroy(&dir.join(file))?;
                }
                return Err(e);
            }
        };
        let same_key = check == self.held().check;
        let held = Held { check, key: new };
        *self
            .master
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = std::sync::Arc::new(held);
        self.db()
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        self.destroy_unnamed(Some(&source))?;
        let elsewhere = |source: &MasterSource| source.own_file().is_none();
        let before = before.or_else(|| default_source(&self.name));
        Ok(Resealed {
            left: before.filter(|old| !same_key && elsewhere(old) && *old != source),
            master: source,
        })
    }

    /// The keys that backups of keys may be encrypted under: the present one first.
    pub(super) fn backup_keys(&self, db: &Connection) -> Result<Vec<SealingKey>, VaultError> {
        let held = self.held();
        let mut keys = vec![held.key.for_backups()?];
        for sealed in store::backup_keys(db)? {
            keys.push(held.key.open_backup_key(self.id, &sealed)?);
        }
        Ok(keys)
    }

    /// Encrypts all that is under the master key under another one, in the caller's transaction.
    fn encrypt_under(&self, db: &Connection, new: &MasterKey) -> Result<(), VaultError> {
        let old = self.held();
        for name in store::all_key_names(db)? {
            for row in store::key_versions(db, &name, 0, usize::MAX)? {
                let slot = Slot {
                    vault: self.id,
                    key: &row.name,
                    version: &row.version,
                    n: &row.n,
                    e: &row.e,
                };
                let material = old.key.open(&slot, &row.sealed)?;
                store::set_sealed(db, row.seq, &new.seal(&slot, &material)?)?;
            }
        }
        let backups = self.backup_keys(db)?;
        store::clear_backup_keys(db)?;
        for key in &backups {
            store::add_backup_key(db, &new.seal_backup_key(self.id, key)?)?;
        }
        self.chain
            .reseal(db, &old.key.for_audit()?, &new.for_audit()?)?;
        Ok(())
    }

    /// Destroys the files in the vault's directory that have, or had, a master key and that nothing names.
    fn destroy_unnamed(&self, named: Option<&MasterSource>) -> Result<(), VaultError> {
        let Some(named) = named else {
            // The file that a vault without a choice has is the only one with the default name.
            return self.destroy_files(|name| name != DEFAULT_FILE);
        };
        self.destroy_files(|name| named.own_file() != Some(name))
    }

    fn destroy_files(&self, unnamed: impl Fn(&str) -> bool) -> Result<(), VaultError> {
        let dir = self.dir();
        let fail = |e: std::io::Error| {
            let what = format!("cannot look into {}", dir.display());
            VaultError::caused(VaultErrorCode::Internal, what, e)
        };
        for entry in std::fs::read_dir(dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| is_own_file(name) && unnamed(name)) {
                destroy(&path)?;
            }
        }
        Ok(())
    }
}
