//! Making keys, bringing them in, listing and changing them.

use database::Connection;
use uuid::Uuid;

use super::subject::{Done, Subject};
use super::vault::EmbeddedVault;
use crate::master::Slot;
use crate::private_keys::{NewPrivateKey, PrivateKeyId};
use crate::refusal;
use crate::rsa_key::{KeyMaterial, RsaKey};
use crate::store::{self, KeyRow};
use crate::tags::check_tags;
use crate::{
    AttributeChange, Caller, KeyBundle, KeyChange, KeyId, KeyOps, KeyPermission, NewKey, Page,
    Tags, VaultError, VaultErrorCode, check_key_name,
};

/// A version to be added to a key, apart from its numbers.
pub(super) struct NewVersion<'a> {
    pub name: &'a str,
    pub key_ops: &'a KeyOps,
    pub attributes: &'a AttributeChange,
    pub tags: &'a Tags,
}

/// Who may add a version, and when; looked at twice.
pub(super) type Gate<'a> = &'a dyn Fn(&Connection) -> Result<(), VaultError>;

/// Makes the private key of a version.
pub(super) type Make<'a> = &'a dyn Fn(&PrivateKeyId<'_>) -> Result<NewPrivateKey, VaultError>;

impl EmbeddedVault {
    /// Makes a key, or a new version of it when the name is taken, as Azure does.
    ///
    /// # Errors
    /// A [`VaultError`] whose code says which check failed.
    pub fn create_key(
        &self,
        caller: &Caller,
        name: &str,
        new: &NewKey,
    ) -> Result<KeyBundle, VaultError> {
        let version = NewVersion {
            name,
            key_ops: &new.key_ops,
            attributes: &new.attributes,
            tags: &new.tags,
        };
        let make: Make<'_> = &|id| self.keys.generate(id, new.size);
        let gate: Gate<'_> = &|db| self.authorize(db, caller, KeyPermission::Create);
        let subject = Subject::key("KeyCreate", name);
        self.add_version(caller, &subject, gate, &version, make)
    }

    /// Brings in an RSA private key; a new version when the name is taken.
    ///
    /// # Errors
    /// A [`VaultError`] whose code says which check failed.
    pub fn import_key(
        &self,
        caller: &Caller,
        name: &str,
        material: &KeyMaterial<'_>,
        change: &KeyChange,
    ) -> Result<KeyBundle, VaultError> {
        let (key_ops, tags) = (KeyOps::default(), Tags::new());
        let version = NewVersion {
            name,
            key_ops: change.key_ops.as_ref().unwrap_or(&key_ops),
            attributes: &change.attributes,
            tags: change.tags.as_ref().unwrap_or(&tags),
        };
        let make: Make<'_> = &|id| self.keys.import(id, &RsaKey::read(material)?);
        let gate: Gate<'_> = &|db| self.authorize(db, caller, KeyPermission::Import);
        let subject = Subject::key("KeyImport", name);
        self.add_version(caller, &subject, gate, &version, make)
    }

    /// The latest version of every key.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`] without the permission `list`.
    pub fn keys(&self, caller: &Caller) -> Result<Vec<KeyBundle>, VaultError> {
        Ok(self.keys_page(caller, None, usize::MAX)?.items)
    }

    /// The latest version of at most `max` keys, from where [`Page::next`] has said.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`] without the permission `list`, [`VaultErrorCode::BadParameter`] for an `after` that
    /// no page has given.
    pub fn keys_page(
        &self,
        caller: &Caller,
        after: Option<&str>,
        max: usize,
    ) -> Result<Page<KeyBundle>, VaultError> {
        self.audited(caller, &Subject::vault("KeyList"), |db| {
            self.authorize(db, caller, KeyPermission::List)?;
            let rows = store::latest_keys(db, behind(after)?, max)?;
            self.page(db, &rows, max, |row| row.name.clone())
        })
    }

    /// All versions of a key, the oldest first.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`] without the permission `list`,
    /// [`VaultErrorCode::KeyNotFound`].
    pub fn key_versions(&self, caller: &Caller, name: &str) -> Result<Vec<KeyBundle>, VaultError> {
        let page = self.key_versions_page(caller, name, None, usize::MAX)?;
        Ok(page.items)
    }

    /// At most `max` versions of a key, the oldest first, from where [`Page::next`] has said.
    ///
    /// # Errors
    /// As [`key_versions`](Self::key_versions), and [`VaultErrorCode::BadParameter`] for an `after`
    /// that no page has given.
    pub fn key_versions_page(
        &self,
        caller: &Caller,
        name: &str,
        after: Option<&str>,
        max: usize,
    ) -> Result<Page<KeyBundle>, VaultError> {
        self.audited(caller, &Subject::key("KeyListVersions", name), |db| {
            self.authorize(db, caller, KeyPermission::List)?;
            let after = after.map_or(Ok(0), str::parse).map_err(|e| {
                let what = "the list cannot be continued from there";
                VaultError::caused(VaultErrorCode::BadParameter, what, e)
            })?;
            self.find(db, &latest(name))?;
            let rows = store::key_versions(db, name, after, max)?;
            self.page(db, &rows, max, |row| row.seq.to_string())
        })
    }

    /// Changes the attributes, operations or tags of a key version.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`] without the permission `update`,
    /// [`VaultErrorCode::KeyNotFound`], [`VaultErrorCode::BadParameter`].
    pub fn update_key(
        &self,
        caller: &Caller,
        key: &KeyId,
        change: &KeyChange,
    ) -> Result<KeyBundle, VaultError> {
        let subject = Subject {
            detail: Some(change.to_string()),
            ..Subject::of("KeyUpdate", key)
        };
        let updated = self.audited(caller, &subject, |db| {
            self.authorize(db, caller, KeyPermission::Update)?;
            let mut row = self.find(db, key)?;
            change.attributes.apply(&mut row, self.clock.now())?;
            if let Some(ops) = &change.key_ops {
                row.key_ops = ops.clone();
            }
            if let Some(tags) = &change.tags {
                check_tags(tags)?;
                row.tags = tags.clone();
            }
            store::update_key(db, &row)?;
            let bundle = self.bundle(&self.settings_in(db)?, &row);
            Ok(Done::with_version(bundle, &row.version))
        })?;
        self.forget_key(&key.name);
        Ok(updated)
    }

    /// Adds a version. Finding primes, or reaching a device, takes long, so that it is done before
    /// the transaction, and never in it; whoever does not get through the gate is refused before
    /// that.
    pub(super) fn add_version(
        &self,
        caller: &Caller,
        subject: &Subject<'_>,
        gate: Gate<'_>,
        new: &NewVersion<'_>,
        make: Make<'_>,
    ) -> Result<KeyBundle, VaultError> {
        let version = Uuid::new_v4().simple().to_string();
        let id = PrivateKeyId {
            vault: self.id,
            key: new.name,
            version: &version,
        };
        let allowed = self.read(|db| self.may_add(db, gate, new));
        let made = allowed.and_then(|()| make(&id));
        let mut is_added = false;
        let added = self.audited(caller, subject, |db| {
            is_added = false;
            self.may_add(db, gate, new)?;
            // Where the gate was opened between the two looks, the first refusal stands.
            let key = made.as_ref().map_err(VaultError::again)?;
            // A key keeps the case in which its name was given first.
            let known = store::latest_version(db, new.name)?;
            let name = known.map_or_else(|| new.name.to_owned(), |latest| latest.name);
            let row = self.new_row(new, &name, &version, key)?;
            store::insert_key(db, &row)?;
            let bundle = self.bundle(&self.settings_in(db)?, &row);
            is_added = true;
            Ok(Done::with_version(bundle, &row.version))
        });
        if let (Err(e), Ok(key)) = (&added, &made) {
            match is_added && !e.has_changed_nothing() {
                false => self.discard(&key.material),
                // A commit that fails may be on storage all the same, and come into force when the
                // database is opened the next time: with a key that must be there then.
                true => log::warn!(
                    "the version {version} of the key '{}' may have been added in spite of: {e}",
                    new.name
                ),
            }
        }
        added
    }

    fn may_add(
        &self,
        db: &Connection,
        gate: Gate<'_>,
        new: &NewVersion<'_>,
    ) -> Result<(), VaultError> {
        gate(db)?;
        check_key_name(new.name)?;
        check_tags(new.tags)?;
        match self.deleted_row(db, new.name)? {
            Some(deleted) => Err(refusal::name_is_deleted(&self.name, &deleted)),
            None if store::deleted_key(db, new.name)?.is_some() => {
                Err(refusal::being_purged(&self.name, new.name))
            }
            None => Ok(()),
        }
    }

    /// Destroys a private key whose version was not added after all.
    fn discard(&self, material: &[u8]) {
        if let Err(e) = self.keys.delete(material) {
            log::warn!("a private key that was made in vain is left behind: {e}");
        }
    }

    fn new_row(
        &self,
        new: &NewVersion<'_>,
        name: &str,
        version: &str,
        key: &NewPrivateKey,
    ) -> Result<KeyRow, VaultError> {
        let now = self.clock.now();
        let mut row = KeyRow {
            seq: 0,
            name: name.into(),
            version: version.into(),
            rev: 1,
            enabled: true,
            not_before: None,
            expires: None,
            created: now,
            updated: now,
            n: key.n.clone(),
            e: key.e.clone(),
            sealed: Vec::new(),
            kty: self.keys.key_type().name().into(),
            key_ops: new.key_ops.clone(),
            tags: new.tags.clone(),
        };
        self.seal(&mut row, &key.material)?;
        new.attributes.apply(&mut row, now)?;
        Ok(row)
    }

    /// Puts the private part into a row that has everything else. In the caller's transaction the master key is the
    /// vault's until the row is stored.
    pub(super) fn seal(&self, row: &mut KeyRow, material: &[u8]) -> Result<(), VaultError> {
        let slot = Slot {
            vault: self.id,
            key: &row.name,
            version: &row.version,
            n: &row.n,
            e: &row.e,
        };
        row.sealed = self.held().key.seal(&slot, material)?;
        Ok(())
    }

    fn page(
        &self,
        db: &Connection,
        rows: &[KeyRow],
        max: usize,
        marker: impl Fn(&KeyRow) -> String,
    ) -> Result<Page<KeyBundle>, VaultError> {
        let settings = self.settings_in(db)?;
        Ok(Page {
            items: rows.iter().map(|row| self.bundle(&settings, row)).collect(),
            next: rows.last().filter(|_| rows.len() == max).map(marker),
        })
    }
}

/// The name behind which a list goes on.
pub(super) fn behind(after: Option<&str>) -> Result<&str, VaultError> {
    let Some(after) = after else {
        return Ok("");
    };
    let not_from_there = |_| {
        let what = "the list cannot be continued from there";
        VaultError::new(VaultErrorCode::BadParameter, what)
    };
    check_key_name(after).map_err(not_from_there)?;
    Ok(after)
}

pub(super) fn latest(name: &str) -> KeyId {
    KeyId {
        name: name.into(),
        version: None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::private_keys::{PrivateKey, PrivateKeys, SoftwareKeys};
    use crate::{KeySize, KeyType, Permissions, SystemClock, VaultSettings};

    /// Keys that are destroyed one by one, as those in a token.
    #[derive(Default)]
    struct Destroyed(AtomicUsize);

    impl PrivateKeys for Destroyed {
        fn key_type(&self) -> KeyType {
            SoftwareKeys.key_type()
        }

        fn generate(
            &self,
            id: &PrivateKeyId<'_>,
            size: KeySize,
        ) -> Result<NewPrivateKey, VaultError> {
            SoftwareKeys.generate(id, size)
        }

        fn import(&self, id: &PrivateKeyId<'_>, key: &RsaKey) -> Result<NewPrivateKey, VaultError> {
            SoftwareKeys.import(id, key)
        }

        fn open(&self, material: &[u8]) -> Result<Arc<dyn PrivateKey>, VaultError> {
            SoftwareKeys.open(material)
        }

        fn delete(&self, _: &[u8]) -> Result<(), VaultError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    /// How many private keys a failing creation destroys, with the vault's database prepared for it.
    fn destroyed_by_a_failure(prepare: &[&str]) -> usize {
        let dir = tempfile::tempdir().unwrap();
        let keys = Arc::new(Destroyed::default());
        let settings = VaultSettings::default();
        let clock = Arc::new(SystemClock);
        let vault =
            EmbeddedVault::create_with(dir.path(), "v", &settings, clock, keys.clone()).unwrap();
        let owner = Caller::local(Uuid::new_v4());
        let all = Permissions::all();
        vault.set_policy(&owner, owner.object_id, &all).unwrap();
        for sql in prepare {
            vault.db().execute(sql, &[]).unwrap();
        }
        let new = NewKey::new(KeySize::Rsa2048);
        assert!(vault.create_key(&owner, "k", &new).is_err());
        keys.0.load(Ordering::SeqCst)
    }

    #[test]
    fn the_private_key_of_a_version_that_may_be_there_is_not_destroyed() {
        let refused = "CREATE TEMP TRIGGER refusing BEFORE INSERT ON main.key_versions
             BEGIN SELECT RAISE(ABORT, 'no'); END";
        assert_eq!(destroyed_by_a_failure(&[refused]), 1);
        // The end of the transaction fails, of which SQLite may have written more than it says.
        let at_the_end = [
            "CREATE TEMP TABLE parent (id INTEGER PRIMARY KEY)",
            "CREATE TEMP TABLE child
                 (id INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)",
            "CREATE TEMP TRIGGER failing AFTER INSERT ON main.key_versions
             BEGIN INSERT INTO child VALUES (1); END",
        ];
        assert_eq!(destroyed_by_a_failure(&at_the_end), 0);
    }
}
