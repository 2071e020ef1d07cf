//! The embedded vault: an SQLite database and a master key in a directory of its own.

mod backup;
mod cache;
mod commit;
mod deleted;
mod due;
mod held;
mod keys;
mod operations;
mod quota;
mod recording;
mod reseal;
mod rotation;
mod vault_deleted;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, TransactionBehavior};
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::due::Due;
pub use self::quota::Throttle;
pub use self::reseal::Resealed;

use self::cache::KeyCache;
use self::commit::Queue;
use self::held::{Held, load_master};
use self::quota::is_essential;
use super::bundle::KeyBundle;
use super::clock::Clock;
use super::master::{MasterKey, MasterPlace};
use super::private_keys::{PrivateKeys, SoftwareKeys};
use super::refusal;
use super::store::{self, KeyRow, VaultRow};
use super::{
    Caller, KeyId, KeyPermission, KeyType, Permissions, VaultError, VaultErrorCode, VaultSettings,
    vault_url,
};
use crate::audit::{AuditRecord, Chain, Counted, Finding, Reserve, Seen};
use crate::sqlite;

/// A key vault in a directory: `vault.db` and, unless systemd provides it, `master.key`.
///
/// Any number of threads may use one, and any number of processes may have the same vault open.
pub struct EmbeddedVault {
    id: Uuid,
    name: String,
    url: String,
    created: OffsetDateTime,
    master: Mutex<Arc<Held>>,
    keys: Arc<dyn PrivateKeys>,
    chain: Chain,
    seen: Seen,
    clock: Arc<dyn Clock>,
    path: PathBuf,
    /// Device and inode of the database.
    file: (u64, u64),
    /// What writes.
    db: Mutex<Connection>,
    /// What reads while another thread commits; opened at its first use.
    reader: Mutex<Option<Connection>>,
    queue: Queue,
    cache: KeyCache,
    reserve: Reserve,
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
    /// [`VaultErrorCode::BadParameter`] for a retention time out of bounds,
    /// [`VaultErrorCode::Internal`], [`VaultErrorCode::MasterKey`].
    pub fn create(
        dir: &Path,
        name: &str,
        settings: &VaultSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, VaultError> {
        Self::create_with(dir, name, settings, clock, Arc::new(SoftwareKeys))
    }

    /// As [`create`](Self::create), with the private keys elsewhere than in the database.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_with(
        dir: &Path,
        name: &str,
        settings: &VaultSettings,
        clock: Arc<dyn Clock>,
        keys: Arc<dyn PrivateKeys>,
    ) -> Result<Self, VaultError> {
        Self::create_at(dir, name, settings, clock, keys, None)
    }

    /// As [`create`](Self::create), with the private keys elsewhere than in the database, and the
    /// master key in that place; without one, as a systemd credential when there is one, else in the
    /// file `master.key`.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_at(
        dir: &Path,
        name: &str,
        settings: &VaultSettings,
        clock: Arc<dyn Clock>,
        keys: Arc<dyn PrivateKeys>,
        master: Option<&MasterPlace>,
    ) -> Result<Self, VaultError> {
        settings.check()?;
        let path = dir.join("vault.db");
        let mut db = sqlite::open(&path, &store::SCHEMA)?;
        let (master, source) = match master {
            None => (MasterKey::create(dir, name)?, None),
            Some(place) => {
                let (master, source) = place.make(dir)?;
                (master, Some(source))
            }
        };
        let id = Uuid::new_v4();
        let row = VaultRow {
            id,
            name: name.into(),
            created: clock.now(),
            master_check: master.check_value(id)?.to_vec(),
            settings: *settings,
            master: source,
        };
        store::insert_vault(&db, &row)?;
        let chain = chain(&mut db, &master, clock.as_ref())?;
        Self::new(row, master, keys, chain, clock, path, db)
    }

    /// Opens the vault `name` in `dir`. Keys whose retention time is over are purged, unless a
    /// device has them: that may take long, and is left to [`run_due`](Self::run_due).
    ///
    /// # Errors
    /// [`VaultErrorCode::VaultNotFound`], [`VaultErrorCode::MasterKey`] for one that is missing,
    /// exposed or another vault's, [`VaultErrorCode::Internal`] for damaged files,
    /// [`VaultErrorCode::Tampered`] for an audit log with a foreign signing key.
    pub fn open(dir: &Path, name: &str, clock: Arc<dyn Clock>) -> Result<Self, VaultError> {
        Self::open_with(dir, name, clock, Arc::new(SoftwareKeys))
    }

    /// As [`open`](Self::open), with the private keys elsewhere than in the database.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(
        dir: &Path,
        name: &str,
        clock: Arc<dyn Clock>,
        keys: Arc<dyn PrivateKeys>,
    ) -> Result<Self, VaultError> {
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
        Reserve::of(&path).release_if_full();
        let mut db = sqlite::open(&path, &store::SCHEMA)?;
        let row = store::vault(&db)?
            .filter(|row| row.name == name)
            .ok_or_else(missing)?;
        let master = load_master(dir, &row)?;
        let chain = chain(&mut db, &master, clock.as_ref())?;
        let vault = Self::new(row, master, keys, chain, clock, path, db)?;
        if !vault.in_device() {
            vault.purge_in_passing();
        }
        vault.reserve.keep();
        vault.settle_in_passing();
        Ok(vault)
    }

    fn new(
        row: VaultRow,
        master: MasterKey,
        keys: Arc<dyn PrivateKeys>,
        chain: Chain,
        clock: Arc<dyn Clock>,
        path: PathBuf,
        db: Connection,
    ) -> Result<Self, VaultError> {
        let seen = Seen::open(&chain, &db, &path, &format!("vault/{}", row.name))?;
        if let Some(finding) = seen.finding() {
            log::warn!("the key vault '{}': {}", row.name, finding.what);
        }
        let file = file_id(&path).map_err(|e| {
            let what = format!("cannot look at {}", path.display());
            VaultError::caused(VaultErrorCode::Internal, what, e)
        })?;
        Ok(Self {
            seen,
            file,
            reserve: Reserve::of(&path),
            id: row.id,
            url: vault_url(&row.name),
            name: row.name,
            created: row.created,
            master: Mutex::new(Arc::new(Held {
                check: row.master_check,
                key: master,
            })),
            keys,
            chain,
            clock,
            path,
            db: Mutex::new(db),
            reader: Mutex::new(None),
            queue: Queue::default(),
            cache: KeyCache::default(),
        })
    }

    /// Purges what is due; what fails is logged and keeps nobody from the vault.
    fn purge_in_passing(&self) {
        let failed = match self.purge_due() {
            Ok(due) => due.failed,
            Err(e) => vec![e.to_string()],
        };
        for line in failed {
            log::error!("key vault '{}': {line}", self.name);
        }
    }

    /// Whether the database that is open is still the one of that name, and not one that was removed or
    /// replaced.
    pub fn is_current(&self) -> bool {
        file_id(&self.path).is_ok_and(|now| now == self.file)
    }

    /// The vault's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kind of its keys.
    pub fn key_type(&self) -> KeyType {
        self.keys.key_type()
    }

    /// When the vault was made.
    pub fn created(&self) -> OffsetDateTime {
        self.created
    }

    /// Keeps up to `count` private keys ready for use, for a process that serves many requests.
    /// Without it every use reads its key anew, and none stays in memory.
    pub fn cache_private_keys(&self, count: usize) {
        self.cache.resize(count);
    }

    /// What the vault does with deleted keys.
    ///
    /// # Errors
    /// [`VaultErrorCode::Internal`].
    pub fn settings(&self) -> Result<VaultSettings, VaultError> {
        self.settings_in(&self.db())
    }

    /// Changes that. As for policies, who may reach the vault's files administrates it.
    ///
    /// # Errors
    /// [`VaultErrorCode::BadParameter`] for another retention time than the vault was made with,
    /// which cannot be changed; [`VaultErrorCode::ForbiddenByPolicy`] when purge protection is to be
    /// switched off.
    pub fn update_settings(
        &self,
        caller: &Caller,
        settings: &VaultSettings,
    ) -> Result<(), VaultError> {
        let subject = Subject {
            detail: Some(format!(
                "retentionDays={} purgeProtection={}",
                settings.retention_days, settings.purge_protection
            )),
            ..Subject::vault("VaultUpdate")
        };
        self.audited(caller, &subject, |db| {
            settings.check()?;
            let now = self.settings_in(db)?;
            if settings.retention_days != now.retention_days {
                return Err(refusal::fixed_retention(&self.name, now.retention_days));
            }
            if now.purge_protection && !settings.purge_protection {
                return Err(VaultError::new(
                    VaultErrorCode::ForbiddenByPolicy,
                    format!(
                        "purge protection of the key vault '{}' cannot be switched off any more",
                        self.name
                    ),
                ));
            }
            store::update_vault(db, settings)
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
            store::set_policy(db, object_id, permissions)
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

    /// What shows that the audit log, and with it the vault, is not the one that was seen last: an
    /// earlier state that was put back.
    pub fn older(&self) -> Option<&Finding> {
        self.seen.finding()
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
        if is_essential(subject.operation) {
            self.reserve.make_room(&db);
        }
        let mut transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.follow_master(&transaction)?;
        // Whoever looks at the vault sees no key whose time is over.
        let purged = self.purge_expired(&transaction)?;
        let each = |record| Counted {
            record,
            window: None,
        };
        let mut records: Vec<Counted> = purged.into_iter().map(each).collect();
        let savepoint = transaction.savepoint()?;
        let allowed = match vault_deleted::is_for_deleted(subject.operation) {
            true => Ok(()),
            false => self.refuse_deleted(&savepoint),
        };
        let admitted = self.admit(&savepoint, caller, subject.operation);
        let outcome = match allowed.and(admitted).and_then(|()| operation(&savepoint)) {
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
            Err(refusal) => (None, Some(refusal.code)),
        };
        let record = self.record(caller, subject, used, refusal);
        records.push(self.counted(&transaction, caller, record)?);
        self.chain
            .append_counted(&transaction, &records, self.clock.now())?;
        transaction.commit()?;
        self.seen.note(&self.chain, &db);
        outcome.map(|done| done.value)
    }

    /// Whether an identity has a permission, for a request that never becomes an operation. Nothing
    /// is recorded.
    ///
    /// # Errors
    /// [`VaultErrorCode::Forbidden`].
    pub fn check_permission(
        &self,
        caller: &Caller,
        permission: KeyPermission,
    ) -> Result<(), VaultError> {
        self.authorize(&self.db(), caller, permission)
    }

    /// A deleted vault does nothing but be recovered or purged.
    fn refuse_deleted(&self, db: &Connection) -> Result<(), VaultError> {
        match store::deletion(db)? {
            Some(deletion) => Err(refusal::vault_deleted(&self.name, &deletion)),
            None => Ok(()),
        }
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
        if let Some(row) = store::key(db, key)? {
            return Ok(row);
        }
        Err(match self.deleted_row(db, &key.name)? {
            Some(deleted) => refusal::deleted(&self.name, &deleted),
            None => refusal::no_key(&self.name, &key.name, key.version.as_deref()),
        })
    }

    fn settings_in(&self, db: &Connection) -> Result<VaultSettings, VaultError> {
        Ok(self.row_in(db)?.settings)
    }

    fn row_in(&self, db: &Connection) -> Result<VaultRow, VaultError> {
        let gone = || VaultError::new(VaultErrorCode::Internal, "the vault's first row is gone");
        store::vault(db)?.ok_or_else(gone)
    }

    fn bundle(&self, settings: &VaultSettings, row: &KeyRow) -> KeyBundle {
        KeyBundle::new(&self.url, settings, row)
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        // A panic elsewhere rolled its transaction back; the connection itself is intact.
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the database while another thread may be writing.
    fn read<T>(
        &self,
        look: impl FnOnce(&Connection) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let db = match reader.take() {
            Some(db) => db,
            None => sqlite::open(&self.path, &store::SCHEMA)?,
        };
        look(reader.insert(db))
    }
}

fn file_id(path: &Path) -> std::io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The chain of the audit log; the first process that opens the database makes it, and puts the
/// records into it that a version of this program without chains has left.
fn chain(db: &mut Connection, master: &MasterKey, clock: &dyn Clock) -> Result<Chain, VaultError> {
    let sealing = master.for_audit()?;
    if let Some(chain) = Chain::load(db, &sealing)? {
        return Ok(chain);
    }
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if let Some(chain) = Chain::load(&transaction, &sealing)? {
        return Ok(chain);
    }
    let now = clock.now();
    let chain = Chain::create(&transaction, &sealing, now)?;
    let mut records = store::take_unchained_audit(&transaction)?;
    if !records.is_empty() {
        let vault = Caller::vault();
        for record in &records {
            commit::note_use(&transaction, record)?;
        }
        let note = format!(
            "{} records are from before this log was chained, as they were found",
            records.len()
        );
        records.push(AuditRecord {
            time: now,
            detail: Some(note),
            ..AuditRecord::new(vault.object_id, &vault.origin, "AuditChained")
        });
        chain.append(&transaction, &records)?;
    }
    transaction.commit()?;
    Ok(chain)
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

    fn key(operation: &'static str, name: &'a str) -> Self {
        Self {
            operation,
            key: Some(name),
            version: None,
            detail: None,
        }
    }

    fn vault(operation: &'static str) -> Self {
        Self {
            operation,
            key: None,
            version: None,
            detail: None,
        }
    }

    fn policy(operation: &'static str, object_id: Uuid, permissions: &Permissions) -> Self {
        let names = permissions.names().join(" ");
        Self {
            detail: Some(format!("{object_id} {names}")),
            ..Self::vault(operation)
        }
    }
}

impl<T> Done<T> {
    fn with_version(value: T, version: &str) -> Self {
        Self {
            value,
            version: Some(version.into()),
        }
    }
}

impl<T> From<T> for Done<T> {
    fn from(value: T) -> Self {
        Self {
            value,
            version: None,
        }
    }
}
