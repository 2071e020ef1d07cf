//! Giving a vault another master key.
//!
//! # Order of steps
//!
//! Under a `flock` of the vault's directory, which keeps others on this host out; of two hosts that do so at once one
//! begins step 2 again:
//!
//! 1. the new key is made in its place, under a name of its own, and is durable;
//! 2. one transaction encrypts every stored key, the signing key of the audit log and the keys of earlier
//!    backups under the new key, and names the new place. Before it commits the vault is under the old
//!    key, which is untouched; after, under the new one;
//! 3. what the write-ahead log and free pages had under the old key is overwritten;
//! 4. the old key is destroyed, and each other file of a master key that the database does not name: a
//!    reseal that was cut off has left them.
//!
//! Killed before the commit, step 4 of the next reseal removes the new key; killed after it, the old one.
//! A commit that fails may be on storage all the same, and come into force when the database is opened
//! the next time, so that both keys stay then. Nothing is destroyed but after a commit that succeeded:
//! that one has replaced whatever an earlier one has left in the write-ahead log.
//! Other processes that have the vault open see in their next transaction that the key is another one, and
//! load it.

use database::Connection;

use super::held::Held;
use super::subject::Subject;
use super::vault::EmbeddedVault;
use crate::master::{
    MasterKey, MasterPlace, MasterSource, Slot, default_source, destroy, is_own_file,
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
        self.place.refuse_of_one_host(place)?;
        let dir = self.place.dir().to_owned();
        let fail = |e: std::io::Error| {
            let what = format!("cannot use {}", dir.display());
            VaultError::caused(VaultErrorCode::Internal, what, e)
        };
        let lock = std::fs::File::open(&dir).map_err(fail)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|e| fail(e.into()))?;
        let before = self.master_source()?;
        let (new, source) = place.make(&dir)?;
        let subject = Subject {
            detail: Some(format!("the master key is {}", source.describe())),
            ..Subject::vault("VaultReseal")
        };
        let mut is_changed = false;
        let changed = self.audited(caller, &subject, |db| {
            is_changed = false;
            let check = new.check_value(self.id)?.to_vec();
            if check != self.held().check {
                self.encrypt_under(db, &new)?;
            }
            store::set_master(db, &check, &source)?;
            is_changed = true;
            Ok(check)
        });
        let check = match changed {
            Ok(check) => check,
            Err(e) => {
                // A file that was there before is the owner's. One that something may be under stays.
                let is_unused = !is_changed || e.has_changed_nothing();
                if let Some(file) = source.own_file().filter(|_| is_unused) {
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
        self.place.overwrite_log()?;
        self.destroy_files(|name| source.own_file() != Some(name))?;
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
    fn destroy_files(&self, is_unnamed: impl Fn(&str) -> bool) -> Result<(), VaultError> {
        let dir = self.place.dir();
        let fail = |e: std::io::Error| {
            let what = format!("cannot look into {}", dir.display());
            VaultError::caused(VaultErrorCode::Internal, what, e)
        };
        for entry in std::fs::read_dir(dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| is_own_file(name) && is_unnamed(name)) {
                destroy(&path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::{
        KeyId, KeySize, KeyVault, NewKey, Permissions, SystemClock, VaultSettings, WrapAlgorithm,
    };

    /// Has each commit fail that gives the vault another master key: what SQLite can only say then.
    const FAILING: [&str; 3] = [
        "CREATE TEMP TABLE parent (id INTEGER PRIMARY KEY)",
        "CREATE TEMP TABLE child (id INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)",
        "CREATE TEMP TRIGGER failing AFTER UPDATE OF master ON main.vault
         BEGIN INSERT INTO child VALUES (1); END",
    ];

    fn key_files(dir: &Path) -> usize {
        let names = std::fs::read_dir(dir).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| is_own_file(name)).count()
    }

    #[test]
    fn a_commit_that_fails_destroys_neither_key_and_the_next_one_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let settings = VaultSettings::default();
        let vault =
            EmbeddedVault::create(dir.path(), "v", &settings, Arc::new(SystemClock)).unwrap();
        let owner = Caller::local(uuid::Uuid::new_v4());
        let all = Permissions::all();
        vault.set_policy(&owner, owner.object_id, &all).unwrap();
        let new = NewKey::new(KeySize::Rsa2048);
        vault.create_key(&owner, "k", &new).unwrap();
        let key = |version| KeyId {
            name: "k".into(),
            version,
        };
        let algorithm = WrapAlgorithm::RsaOaep256;
        let wrapped = vault.wrap_key(&owner, &key(None), algorithm, &[9; 64]);
        let wrapped = wrapped.unwrap();

        for sql in FAILING {
            vault.db().execute(sql, &[]).unwrap();
        }
        assert!(vault.reseal(&owner, &MasterPlace::Beside).is_err());
        assert_eq!(
            key_files(dir.path()),
            2,
            "both, whichever the database names"
        );
        assert_eq!(vault.master_source().unwrap(), None);
        vault.db().execute("DROP TRIGGER failing", &[]).unwrap();
        vault.reseal(&owner, &MasterPlace::Beside).unwrap();
        assert_eq!(key_files(dir.path()), 1);
        let version = key(Some(wrapped.key_version));
        let secret = vault.unwrap_key(&owner, &version, algorithm, &wrapped.value);
        assert_eq!(secret.unwrap().as_slice(), &[9; 64]);
    }

    #[test]
    fn a_refusal_leaves_no_key_behind() {
        let dir = tempfile::tempdir().unwrap();
        let settings = VaultSettings::default();
        let vault =
            EmbeddedVault::create(dir.path(), "v", &settings, Arc::new(SystemClock)).unwrap();
        let owner = Caller::local(uuid::Uuid::new_v4());
        let refusing = "CREATE TEMP TRIGGER refusing BEFORE UPDATE OF master ON main.vault
             BEGIN SELECT RAISE(ABORT, 'no'); END";
        vault.db().execute(refusing, &[]).unwrap();
        assert!(vault.reseal(&owner, &MasterPlace::Beside).is_err());
        assert_eq!(key_files(dir.path()), 1);
    }
}
