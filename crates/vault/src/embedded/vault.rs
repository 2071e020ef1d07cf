//! The vault as a process has it open.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use database::{Connection, Database};
use time::OffsetDateTime;
use uuid::Uuid;

use super::allowed::Allowed;
use super::cache::KeyCache;
use super::held::{Held, load_master};
use super::queue::Queue;
use super::uses::note_use;
use crate::audit::{APPENDING, AuditRecord, Chain, Finding, Seen};
use crate::bundle::KeyBundle;
use crate::clock::Clock;
use crate::master::{MasterKey, MasterPlace};
use crate::place::VaultPlace;
use crate::private_keys::{PrivateKeys, SoftwareKeys};
use crate::refusal;
use crate::store::{self, KeyRow, VaultRow};
use crate::{Caller, KeyId, KeyType, VaultError, VaultErrorCode, VaultSettings, vault_url};

/// For each private key that is kept ready, uses of keys that are remembered.
const USES_OF_KEY: usize = 4;

/// A key vault in a directory: `vault.db` and, unless systemd provides it, `master.key`. The database may be on a server
/// in place of the file ([`VaultPlace`]).
///
/// Any number of threads may use one, and any number of processes may have the same vault open, on several hosts where
/// its database is on a server. Nothing that one of them keeps in memory decides anything: the transaction that counts
/// looks at everything again.
pub struct EmbeddedVault {
    pub(super) id: Uuid,
    pub(super) name: String,
    pub(super) url: String,
    pub(super) created: OffsetDateTime,
    pub(super) master: Mutex<Arc<Held>>,
    pub(super) keys: Arc<dyn PrivateKeys>,
    pub(super) chain: Chain,
    pub(super) seen: Seen,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) place: VaultPlace,
    /// Device and inode of the database, where it is a file.
    file: Option<(u64, u64)>,
    /// Whether another vault was seen in the database.
    is_replaced: AtomicBool,
    /// What writes.
    pub(super) db: Mutex<Database>,
    pub(super) queue: Queue,
    pub(super) cache: KeyCache,
    pub(super) allowed: Allowed,
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
        let place = VaultPlace::in_directory(dir);
        Self::create_in(place, name, settings, clock, keys, master)
    }

    /// As [`create_at`](Self::create_at), of a vault whose database may be on a server: there is none in it yet.
    ///
    /// # Errors
    /// As [`create`](Self::create), and [`VaultErrorCode::Unreachable`] for the server.
    pub fn create_in(
        place: VaultPlace,
        name: &str,
        settings: &VaultSettings,
        clock: Arc<dyn Clock>,
        keys: Arc<dyn PrivateKeys>,
        master: Option<&MasterPlace>,
    ) -> Result<Self, VaultError> {
        settings.check()?;
        let db = place.open()?;
        let dir = place.dir();
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
        let chain = chain(&db, &place, &master, clock.as_ref())?;
        Self::new(row, master, keys, chain, clock, place, db)
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
        Self::open_in(VaultPlace::in_directory(dir), name, clock, keys)
    }

    /// As [`open_with`](Self::open_with), of a vault whose database may be on a server.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`VaultErrorCode::Unreachable`] for the server.
    pub fn open_in(
        place: VaultPlace,
        name: &str,
        clock: Arc<dyn Clock>,
        keys: Arc<dyn PrivateKeys>,
    ) -> Result<Self, VaultError> {
        let missing = || VaultError::no_files(place.lacks(name));
        if !place.is_there()? {
            return Err(missing());
        }
        place.release_if_full();
        let db = place.open()?;
        let row = store::vault(&db)?
            .filter(|row| row.name == name)
            .ok_or_else(missing)?;
        let master = load_master(place.dir(), &row)?;
        let chain = chain(&db, &place, &master, clock.as_ref())?;
        let vault = Self::new(row, master, keys, chain, clock, place, db)?;
        if !vault.in_device() {
            vault.purge_in_passing();
        }
        vault.place.keep_reserve();
        vault.settle_in_passing();
        Ok(vault)
    }

    fn new(
        row: VaultRow,
        master: MasterKey,
        keys: Arc<dyn PrivateKeys>,
        chain: Chain,
        clock: Arc<dyn Clock>,
        place: VaultPlace,
        db: Database,
    ) -> Result<Self, VaultError> {
        let seen = Seen::open(&chain, &db, place.path(), &format!("vault/{}", row.name))?;
        if let Some(finding) = seen.finding() {
            log::warn!("the key vault '{}': {}", row.name, finding.what);
        }
        let file = place.file_id().map_err(|e| {
            let what = format!("cannot look at {}", place.path().display());
            VaultError::caused(VaultErrorCode::Internal, what, e)
        })?;
        Ok(Self {
            seen,
            file,
            is_replaced: AtomicBool::new(false),
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
            place,
            db: Mutex::new(db),
            queue: Queue::default(),
            cache: KeyCache::default(),
            allowed: Allowed::default(),
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
        let is_file = || self.place.file_id().is_ok_and(|now| now == self.file);
        !self.is_replaced.load(Ordering::Relaxed) && is_file()
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
        self.allowed.resize(count.saturating_mul(USES_OF_KEY));
        let cpus = std::thread::available_parallelism();
        self.queue.gather(cpus.map_or(0, std::num::NonZero::get));
    }

    /// Private keys that are ready, and uses that are remembered.
    #[cfg(test)]
    pub(crate) fn ready(&self) -> (usize, usize) {
        (self.cache.len(), self.allowed.len())
    }

    /// Has nothing of a key ready any more that was changed or is gone.
    pub(super) fn forget_key(&self, name: &str) {
        self.allowed.forget_key(name);
        self.cache.forget(name);
    }

    /// What shows that the audit log, and with it the vault, is not the one that was seen last: an
    /// earlier state that was put back.
    pub fn older(&self) -> Option<&Finding> {
        self.seen.finding()
    }

    /// A deleted vault does nothing but be recovered or purged.
    pub(super) fn refuse_deleted(&self, db: &Connection) -> Result<(), VaultError> {
        match store::deletion(db)? {
            Some(deletion) => Err(refusal::vault_deleted(&self.name, &deletion)),
            None => Ok(()),
        }
    }

    pub(super) fn find(&self, db: &Connection, key: &KeyId) -> Result<KeyRow, VaultError> {
        if let Some(row) = store::key(db, key)? {
            return Ok(row);
        }
        Err(match self.deleted_row(db, &key.name)? {
            Some(deleted) => refusal::deleted(&self.name, &deleted),
            None => refusal::no_key(&self.name, &key.name, key.version.as_deref()),
        })
    }

    pub(super) fn settings_in(&self, db: &Connection) -> Result<VaultSettings, VaultError> {
        Ok(self.row_in(db)?.settings)
    }

    pub(super) fn row_in(&self, db: &Connection) -> Result<VaultRow, VaultError> {
        let gone = || VaultError::new(VaultErrorCode::Internal, "the vault's first row is gone");
        let row = store::vault(db)?.ok_or_else(gone)?;
        if row.id == self.id {
            return Ok(row);
        }
        self.is_replaced.store(true, Ordering::Relaxed);
        Err(VaultError::new(
            VaultErrorCode::VaultNotFound,
            format!(
                "the key vault '{}' that was open is gone, and another one is in its place; try again",
                self.name
            ),
        ))
    }

    /// Refuses another vault in the place of this one. A file that was replaced is another file, which is not open here.
    pub(super) fn must_be_this(&self, db: &Connection) -> Result<(), VaultError> {
        match self.place.is_shared() {
            true => self.row_in(db).map(drop),
            false => Ok(()),
        }
    }

    pub(super) fn bundle(&self, settings: &VaultSettings, row: &KeyRow) -> KeyBundle {
        KeyBundle::new(&self.url, settings, row)
    }

    pub(super) fn db(&self) -> MutexGuard<'_, Database> {
        self.db_since(Instant::now())
    }

    /// As [`db`](Self::db), for who waits since then.
    pub(super) fn db_since(&self, begun: Instant) -> MutexGuard<'_, Database> {
        // A panic elsewhere rolled its transaction back; the connection itself is intact.
        let db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        db.waited_since(begun);
        db
    }

    /// Looks at the database while another thread may be writing.
    pub(super) fn read<T>(
        &self,
        look: impl FnOnce(&Connection) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        self.place.read(look)
    }
}

/// The chain of the audit log; the first process that opens the database makes it, and puts the
/// records into it that a version of this program without chains has left.
fn chain(
    db: &Database,
    place: &VaultPlace,
    master: &MasterKey,
    clock: &dyn Clock,
) -> Result<Chain, VaultError> {
    let sealing = master.for_audit()?;
    if let Some(chain) = Chain::load(db, &sealing)? {
        return Ok(chain);
    }
    db.transaction(APPENDING, |db| {
        if let Some(chain) = Chain::load(db, &sealing)? {
            return Ok(chain);
        }
        let now = clock.now();
        let chain = Chain::create(db, &sealing, now)?;
        // A server never had what is older.
        let mut records = match place.is_shared() {
            true => Vec::new(),
            false => store::take_unchained_audit(db)?,
        };
        if !records.is_empty() {
            let vault = Caller::vault();
            for record in &records {
                note_use(db, record)?;
            }
            let note = format!(
                "{} records are from before this log was chained, as they were found",
                records.len()
            );
            let chained = AuditRecord::new(vault.object_id, &vault.origin, "AuditChained");
            records.push(chained.at(now).with_detail(note));
            chain.append(db, &records)?;
        }
        Ok(chain)
    })
}
