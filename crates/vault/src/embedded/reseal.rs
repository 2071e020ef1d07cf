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
//!
//! A server may lose a commit that it has said is durable, when a standby that was behind takes its place, or a backup: the
//! vault is under the old key again then. So where its database is on a server, nothing is destroyed in step 4. Each file
//! gets another name there, under which nothing looks for it, and whoever reseals is told of the old key's. To remove
//! it is their own step, once every standby and each backup that is kept has the new state.
//!
//! Other processes that have the vault open see in their next transaction that the key is another one, and
//! load it.

use std::path::PathBuf;

use database::Connection;
use uuid::Uuid;

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
    /// What still has the old key, which is the owner's to remove; nothing when it was destroyed. Where the database is on a
    /// server it is to stay until that cannot lose the change any more.
    pub left: Option<MasterSource>,
    /// Whether the database is on a server, which may lose the change.
    pub is_on_server: bool,
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

    /// Gives the vault a new master key in that place, and destroys the old one, unless the database is on a server.
    ///
    /// # Errors
    /// [`VaultErrorCode::MasterKey`] when the new one is unavailable; the vault is as it was then.
    pub fn reseal(&self, caller: &Caller, place: &MasterPlace) -> Result<Resealed, VaultError> {
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
        self.db().overwrite_journal().map_err(|e| {
            let what = "what the key vault's write-ahead log had under its old master key is not overwritten, and the \
                        old master key is still there";
            VaultError::caused(VaultErrorCode::Internal, what, e)
        })?;
        let is_unnamed = |name: &str| source.own_file() != Some(name);
        if self.place.is_shared() {
            let old = before
                .as_ref()
                .map_or(Some(DEFAULT_FILE), MasterSource::own_file);
            if let Some(path) = self.set_aside(is_unnamed, old)? {
                return Ok(Resealed {
                    left: Some(MasterSource::File { path }),
                    is_on_server: true,
                    master: source,
                });
            }
        } else {
            self.destroy_files(is_unnamed)?;
        }
        let elsewhere = |source: &MasterSource| source.own_file().is_none();
        let before = before.or_else(|| default_source(&self.name));
        Ok(Resealed {
            left: before.filter(|old| !same_key && elsewhere(old) && *old != source),
            is_on_server: self.place.is_shared(),
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
        let mut names = self.own_files(is_unnamed)?.into_iter();
        names.try_for_each(|name| destroy(&self.place.dir().join(name)))
    }

    /// Gives these files other names; the one that `old` has got.
    fn set_aside(
        &self,
        is_unnamed: impl Fn(&str) -> bool,
        old: Option<&str>,
    ) -> Result<Option<PathBuf>, VaultError> {
        let dir = self.place.dir();
        let fail = |e: std::io::Error| {
            let what = format!("cannot rename in {}", dir.display());
            VaultError::caused(VaultErrorCode::Internal, what, e)
        };
        let mut kept = None;
        for name in self.own_files(is_unnamed)? {
            let aside = dir.join(format!("{name}.old-{}", Uuid::new_v4().simple()));
            std::fs::rename(dir.join(&name), &aside).map_err(fail)?;
            match old == Some(name.as_str()) {
                true => kept = Some(aside),
                false => log::warn!("{} may have an old master key", aside.display()),
            }
        }
        std::fs::File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(fail)?;
        Ok(kept)
    }

    /// The files in the vault's directory that have, or had, a master key and that nothing names.
    fn own_files(&self, is_unnamed: impl Fn(&str) -> bool) -> Result<Vec<String>, VaultError> {
        let dir = self.place.dir();
        let fail = |e: std::io::Error| {
            let what = format!("cannot look into {}", dir.display());
            VaultError::caused(VaultErrorCode::Internal, what, e)
        };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name().into_string();
            names.extend(
                name.ok()
                    .filter(|name| is_own_file(name) && is_unnamed(name)),
            );
        }
        Ok(names)
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

    /// What it reads is in the write-ahead log, under the old key.
    #[test]
    fn the_old_key_stays_while_somebody_reads_what_is_under_it() {
        let dir = tempfile::tempdir().unwrap();
        let settings = VaultSettings::default();
        let vault =
            EmbeddedVault::create(dir.path(), "v", &settings, Arc::new(SystemClock)).unwrap();
        let owner = Caller::local(uuid::Uuid::new_v4());
        let at_once = "PRAGMA busy_timeout = 10";
        vault.db().value::<i64>(at_once, &[]).unwrap();
        let reader = vault.place.open().unwrap();
        let moment = reader.moment().unwrap();
        moment
            .value::<String>("SELECT name FROM vault", &[])
            .unwrap();
        let hindered = vault.reseal(&owner, &MasterPlace::Beside).unwrap_err();
        assert!(
            hindered.message.contains("not overwritten"),
            "{}",
            hindered.message
        );
        assert_eq!(key_files(dir.path()), 2);
        drop(moment);
        vault.reseal(&owner, &MasterPlace::Beside).unwrap();
        assert_eq!(key_files(dir.path()), 1);
        let log = dir.path().join("vault.db-wal");
        assert_eq!(std::fs::metadata(log).unwrap().len(), 0);
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
