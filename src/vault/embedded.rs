//! The embedded vault: an SQLite database and a master key in a directory of its own.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, TransactionBehavior};
use time::OffsetDateTime;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::bundle::{AttributeChange, KeyBundle};
use super::clock::Clock;
use super::master::{MasterKey, Slot};
use super::refusal::{self, shortened};
use super::rsa_key::{self, KeySize, RsaKey};
use super::store::{self, AuditRecord, KeyRow, VaultRow};
use super::{
    Caller, KeyId, KeyPermission, KeyVault, Permissions, VaultError, VaultErrorCode, WrapAlgorithm,
    Wrapped, check_key_name, vault_url,
};
use crate::keys::LockedBytes;
use crate::sqlite;

/// A key vault in a directory: `vault.db` and, unless systemd provides it, `master.key`.
pub struct EmbeddedVault {
    id: Uuid,
    name: String,
    url: String,
    created: OffsetDateTime,
    master: MasterKey,
    clock: Arc<dyn Clock>,
    db: Mutex<Connection>,
}

/// What an operation was about, for the audit log.
struct Subject<'a> {
    operation: &'static str,
    key: Option<&'a str>,
    version: Option<&'a str>,
    detail: Option<String>,
}

/// What an operation gives, with the key version that it came to use.
struct Done<T> {
    value: T,
    version: Option<String>,
}

impl EmbeddedVault {
    /// Makes the vault `name` in `dir`, an empty directory. A caller that must not leave half a
    /// vault behind makes it in a temporary directory and renames that.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`], [`VaultErrorCode::MasterKey`].
    pub fn create(dir: &Path, name: &str, clock: Arc<dyn Clock>) -> Result<Self, VaultError> {
        let db = sqlite::open(&dir.join("vault.db"), &store::SCHEMA)?;
        let master = MasterKey::create(dir, name)?;
        let id = Uuid::new_v4();
        let row = VaultRow {
            id,
            name: name.into(),
            created: clock.now(),
            master_check: master.check_value(id)?.to_vec(),
        };
        store::insert_vault(&db, &row)?;
        Ok(Self::new(row, master, clock, db))
    }

    /// Opens the vault `name` in `dir`.
    ///
    /// # Errors
    /// [`VaultErrorCode::VaultNotFound`], [`VaultErrorCode::MasterKey`] for one that is missing,
    /// exposed or another vault's, [`VaultErrorCode::Internal`] for damaged files.
    pub fn open(dir: &Path, name: &str, clock: Arc<dyn Clock>) -> Result<Self, VaultError> {
        let missing = || {
            VaultError::new(
                VaultErrorCode::VaultNotFound,
                format!(
                    "there is no key vault '{name}' in {}; restore the directory from a backup",
                    dir.display()
                ),
            )
        };
        let path = dir.join("vault.db");
        if !path.exists() {
            return Err(missing());
        }
        let db = sqlite::open(&path, &store::SCHEMA)?;
        let row = store::vault(&db)?
            .filter(|row| row.name == name)
            .ok_or_else(missing)?;
        let master = MasterKey::load(dir, name)?;
        if master.check_value(row.id)?.as_slice() != row.master_check {
            return Err(VaultError::new(
                VaultErrorCode::MasterKey,
                format!(
                    "the master key is not the one that the key vault '{name}' was made with; \
                     restore {} or the systemd credential sealdisk-vault-{name}",
                    dir.join("master.key").display()
                ),
            ));
        }
        Ok(Self::new(row, master, clock, db))
    }

    fn new(row: VaultRow, master: MasterKey, clock: Arc<dyn Clock>, db: Connection) -> Self {
        Self {
            id: row.id,
            url: vault_url(&row.name),
            name: row.name,
            created: row.created,
            master,
            clock,
            db: Mutex::new(db),
        }
    }

    /// The vault's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When the vault was made.
    pub fn created(&self) -> OffsetDateTime {
        self.created
    }

    /// Makes a key, or a new version of it when the name is taken, as Azure does.
    ///
    /// # Errors
    /// A [`VaultError`] whose code says which check failed.
    pub fn create_key(
        &self,
        caller: &Caller,
        name: &str,
        size: KeySize,
        attributes: &AttributeChange,
    ) -> Result<KeyBundle, VaultError> {
        let operation = "KeyCreate";
        // Finding the primes takes seconds, so it is done outside the transaction; whoever may
        // not have the key is refused before.
        let allowed = store::permissions(&self.db(), caller.object_id)?;
        let key = allowed
            .contains(KeyPermission::Create)
            .then(|| RsaKey::generate(size))
            .transpose()?;
        self.add_version(
            caller,
            operation,
            KeyPermission::Create,
            name,
            attributes,
            || key.map_or_else(|| RsaKey::generate(size), Ok),
        )
    }

    /// Brings in an RSA private key as PEM, PKCS#1 or PKCS#8 without a password; a new version
    /// when the name is taken.
    ///
    /// # Errors
    /// A [`VaultError`] whose code says which check failed.
    pub fn import_key(
        &self,
        caller: &Caller,
        name: &str,
        pem: &str,
        attributes: &AttributeChange,
    ) -> Result<KeyBundle, VaultError> {
        let operation = "KeyImport";
        self.add_version(
            caller,
            operation,
            KeyPermission::Import,
            name,
            attributes,
            || RsaKey::from_pem(pem),
        )
    }

    /// The latest version of every key.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`] without the permission `list`.
    pub fn keys(&self, caller: &Caller) -> Result<Vec<KeyBundle>, VaultError> {
        let subject = Subject {
            operation: "KeyList",
            key: None,
            version: None,
            detail: None,
        };
        self.audited(caller, &subject, |db| {
            self.authorize(db, caller, KeyPermission::List)?;
            Ok(self.bundles(&store::latest_keys(db)?))
        })
    }

    /// All versions of a key, the oldest first.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`] without the permission `list`,
    /// [`VaultErrorCode::KeyNotFound`].
    pub fn key_versions(&self, caller: &Caller, name: &str) -> Result<Vec<KeyBundle>, VaultError> {
        let subject = Subject {
            operation: "KeyListVersions",
            key: Some(name),
            version: None,
            detail: None,
        };
        self.audited(caller, &subject, |db| {
            self.authorize(db, caller, KeyPermission::List)?;
            let rows = store::key_versions(db, name)?;
            if rows.is_empty() {
                return Err(refusal::no_key(&self.name, name, None));
            }
            Ok(self.bundles(&rows))
        })
    }

    /// Changes the attributes of a key version.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`] without the permission `update`,
    /// [`VaultErrorCode::KeyNotFound`], [`VaultErrorCode::BadParameter`].
    pub fn set_attributes(
        &self,
        caller: &Caller,
        key: &KeyId,
        change: &AttributeChange,
    ) -> Result<KeyBundle, VaultError> {
        let subject = Subject {
            detail: Some(change.to_string()),
            ..Subject::of("KeyUpdate", key)
        };
        self.audited(caller, &subject, |db| {
            self.authorize(db, caller, KeyPermission::Update)?;
            let mut row = self.find(db, key)?;
            change.apply(&mut row, self.clock.now())?;
            store::update_key(db, &row)?;
            Ok(Done {
                value: KeyBundle::new(&self.url, &row),
                version: Some(row.version),
            })
        })
    }

    /// All access policies. Who may reach the vault's files administrates it, so that this and the
    /// changes of policies need no policy; they are recorded all the same.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn policies(&self) -> Result<Vec<(Uuid, Permissions)>, VaultError> {
        store::policies(&self.db())
    }

    /// Replaces what an identity may do with the vault's keys.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn set_policy(
        &self,
        caller: &Caller,
        object_id: Uuid,
        permissions: &Permissions,
    ) -> Result<(), VaultError> {
        let subject = Subject::policy("VaultSetPolicy", object_id, permissions);
        self.audited(caller, &subject, |db| {
            store::set_policy(db, object_id, permissions)?;
            Ok(())
        })
    }

    /// Takes everything from an identity.
    ///
    /// # Errors
    /// [`VaultErrorCode::PolicyNotFound`] when it had nothing.
    pub fn delete_policy(&self, caller: &Caller, object_id: Uuid) -> Result<(), VaultError> {
        let none = Permissions::default();
        let subject = Subject::policy("VaultDeletePolicy", object_id, &none);
        self.audited(caller, &subject, |db| {
            if store::delete_policy(db, object_id)? {
                return Ok(());
            }
            Err(VaultError::new(
                VaultErrorCode::PolicyNotFound,
                format!(
                    "the key vault '{name}' has no access policy for {object_id}; \
                     `sealdisk keyvault show {name}` shows those that it has",
                    name = self.name
                ),
            ))
        })
    }

    /// The audit log, the oldest record first.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn audit_log(&self) -> Result<Vec<AuditRecord>, VaultError> {
        store::audit(&self.db())
    }

    fn add_version(
        &self,
        caller: &Caller,
        operation: &'static str,
        permission: KeyPermission,
        name: &str,
        attributes: &AttributeChange,
        key: impl FnOnce() -> Result<RsaKey, VaultError>,
    ) -> Result<KeyBundle, VaultError> {
        let subject = Subject {
            operation,
            key: Some(name),
            version: None,
            detail: None,
        };
        self.audited(caller, &subject, |db| {
            self.authorize(db, caller, permission)?;
            check_key_name(name)?;
            let row = self.new_version(name, attributes, &key()?)?;
            store::insert_key(db, &row)?;
            Ok(Done {
                value: KeyBundle::new(&self.url, &row),
                version: Some(row.version),
            })
        })
    }

    fn new_version(
        &self,
        name: &str,
        attributes: &AttributeChange,
        key: &RsaKey,
    ) -> Result<KeyRow, VaultError> {
        let version = Uuid::new_v4().simple().to_string();
        let (n, e) = key.public_parts();
        let slot = Slot {
            vault: self.id,
            key: name,
            version: &version,
            n: &n,
            e: &e,
        };
        let now = self.clock.now();
        let mut row = KeyRow {
            sealed: self.master.seal(&slot, &key.to_der()?)?,
            name: name.into(),
            version,
            rev: 1,
            enabled: true,
            not_before: None,
            expires: None,
            created: now,
            updated: now,
            n,
            e,
        };
        attributes.apply(&mut row, now)?;
        Ok(row)
    }

    /// Runs one operation: its checks, what it changes and its record in the audit log are one
    /// transaction, which is durable before the caller learns the outcome. A refusal takes the
    /// changes back and is recorded; when no record can be written there is no answer but that.
    fn audited<T, D: Into<Done<T>>>(
        &self,
        caller: &Caller,
        subject: &Subject<'_>,
        operation: impl FnOnce(&Connection) -> Result<D, VaultError>,
    ) -> Result<T, VaultError> {
        let mut db = self.db();
        let mut transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let savepoint = transaction.savepoint()?;
        let outcome = match operation(&savepoint) {
            Ok(done) => {
                savepoint.commit()?;
                Ok(done.into())
            }
            Err(refusal) => {
                savepoint.finish()?;
                Err(refusal)
            }
        };
        let (used, refusal) = match &outcome {
            Ok(done) => (done.version.as_deref(), None),
            Err(refusal) => (None, Some(refusal.code.as_str().to_owned())),
        };
        let record = AuditRecord {
            time: self.clock.now(),
            caller: caller.object_id,
            operation: subject.operation.into(),
            key: subject.key.map(shortened),
            version: used.or(subject.version).map(shortened),
            detail: subject.detail.clone(),
            refusal,
        };
        store::insert_audit(&transaction, &record)?;
        transaction.commit()?;
        outcome.map(|done| done.value)
    }

    fn authorize(
        &self,
        db: &Connection,
        caller: &Caller,
        permission: KeyPermission,
    ) -> Result<(), VaultError> {
        let granted = store::permissions(db, caller.object_id)?;
        if granted.contains(permission) {
            return Ok(());
        }
        Err(refusal::forbidden(&self.name, caller, permission, &granted))
    }

    fn find(&self, db: &Connection, key: &KeyId) -> Result<KeyRow, VaultError> {
        store::key(db, key)?
            .ok_or_else(|| refusal::no_key(&self.name, &key.name, key.version.as_deref()))
    }

    /// A key version that may be used now.
    fn usable(&self, db: &Connection, key: &KeyId) -> Result<KeyRow, VaultError> {
        let row = self.find(db, key)?;
        match refusal::unusable(&self.name, &row, self.clock.now()) {
            Some(refusal) => Err(refusal),
            None => Ok(row),
        }
    }

    fn open_sealed(&self, row: &KeyRow) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let slot = Slot {
            vault: self.id,
            key: &row.name,
            version: &row.version,
            n: &row.n,
            e: &row.e,
        };
        self.master.open(&slot, &row.sealed)
    }

    fn bundles(&self, rows: &[KeyRow]) -> Vec<KeyBundle> {
        rows.iter()
            .map(|row| KeyBundle::new(&self.url, row))
            .collect()
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        // A panic elsewhere rolled its transaction back; the connection itself is intact.
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyVault for EmbeddedVault {
    fn url(&self) -> &str {
        &self.url
    }

    fn key(&self, caller: &Caller, key: &KeyId) -> Result<KeyBundle, VaultError> {
        self.audited(caller, &Subject::of("KeyGet", key), |db| {
            self.authorize(db, caller, KeyPermission::Get)?;
            let row = self.find(db, key)?;
            Ok(Done {
                value: KeyBundle::new(&self.url, &row),
                version: Some(row.version),
            })
        })
    }

    fn wrap_key(
        &self,
        caller: &Caller,
        key: &KeyId,
        algorithm: WrapAlgorithm,
        secret: &[u8],
    ) -> Result<Wrapped, VaultError> {
        self.audited(caller, &Subject::of("KeyWrap", key), |db| {
            self.authorize(db, caller, KeyPermission::WrapKey)?;
            let row = self.usable(db, key)?;
            // The private key is not needed; that it opens shows that the public one is its own.
            self.open_sealed(&row)?;
            let value = match algorithm {
                WrapAlgorithm::RsaOaep256 => rsa_key::wrap(&row.n, &row.e, secret)?,
            };
            Ok(Done {
                value: Wrapped {
                    key_version: row.version.clone(),
                    value,
                },
                version: Some(row.version),
            })
        })
    }

    fn unwrap_key(
        &self,
        caller: &Caller,
        key: &KeyId,
        algorithm: WrapAlgorithm,
        wrapped: &[u8],
    ) -> Result<LockedBytes, VaultError> {
        self.audited(caller, &Subject::of("KeyUnwrap", key), |db| {
            self.authorize(db, caller, KeyPermission::UnwrapKey)?;
            if key.version.is_none() {
                let message = "unwrapping needs the key version that wrapped";
                return Err(VaultError::new(VaultErrorCode::BadParameter, message));
            }
            let row = self.usable(db, key)?;
            let private_key = RsaKey::from_der(&self.open_sealed(&row)?)?;
            match algorithm {
                WrapAlgorithm::RsaOaep256 => private_key.unwrap(wrapped),
            }
        })
    }
}

impl<'a> Subject<'a> {
    fn of(operation: &'static str, key: &'a KeyId) -> Self {
        Self {
            operation,
            key: Some(&key.name),
            version: key.version.as_deref(),
            detail: None,
        }
    }

    fn policy(operation: &'static str, object_id: Uuid, permissions: &Permissions) -> Self {
        let names = permissions.names().join(" ");
        Self {
            operation,
            key: None,
            version: None,
            detail: Some(format!("{object_id} {names}")),
        }
    }
}

macro_rules! done_without_version {
    ($($type:ty),*) => {
        $(impl From<$type> for Done<$type> {
            fn from(value: $type) -> Self {
                Self { value, version: None }
            }
        })*
    };
}

done_without_version!((), Vec<KeyBundle>, LockedBytes);
