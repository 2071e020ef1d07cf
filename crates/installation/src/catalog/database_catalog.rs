//! The catalog in a database.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use database::{Database, Mode, OpenError, Row, ToValue, Transaction, Value, params, sqlite};
use time::OffsetDateTime;
use uuid::Uuid;

use super::at::{At, CatalogFile, CatalogServer};
use super::columns::{one, uuid};
use super::copy::{self, CatalogCopy};
use super::departed::{self, DepartedRecord};
use super::error::CatalogError;
use super::federated::{self, FederatedCredentialRecord};
use super::file_id::FileId;
use super::installation_row::own_identities;
use super::interface::Catalog;
use super::lock_rows;
use super::locks::LockCatalog;
use super::management::ManagementCatalog;
use super::management_rows;
use super::record::{
    DiskEncryptionSetRecord, DiskRecord, IdentityOwner, IdentityRecord, InstallationRecord, Kind,
    Rev, Stored, VaultRecord,
};
use super::restored::{self, RestoredRecord};
use super::rows::{DES_COLUMNS, VAULT_COLUMNS, parse_des, parse_vault};
use super::schema::SCHEMA;
use super::{identities, noted, purged, resources};
use crate::envelope::ResourceKind;

/// A catalog in a database: by default the SQLite file `catalog.db` in the state directory.
pub struct DatabaseCatalog {
    db: Mutex<Database>,
    at: At,
}

impl DatabaseCatalog {
    /// Opens the catalog at `path`, making an empty one when there is none.
    ///
    /// # Errors
    /// [`CatalogError::Open`]: also for a file of something else or of a newer version. [`CatalogError::Moved`]: it is on
    /// a server by now.
    pub fn open(path: &Path) -> Result<Self, CatalogError> {
        let before = FileId::at(path);
        let db = match sqlite::open(path, &SCHEMA) {
            // One that was moved is of a version of its own.
            Err(newer @ OpenError::Version { .. }) => {
                return Err(match Self::look(path) {
                    Err(moved @ CatalogError::Moved { .. }) => moved,
                    _ => newer.into(),
                });
            }
            opened => opened?,
        };
        // One that was exchanged meanwhile, or made, is opened once more by whoever asks.
        let opened = before.filter(|before| FileId::at(path) == Some(*before));
        let catalog = Self::in_file(db.into(), path, opened);
        catalog.refuse_moved()?;
        if !copy::path_of(path).exists() {
            catalog.copy();
        }
        Ok(catalog)
    }

    fn in_file(db: Database, path: &Path, opened: Option<FileId>) -> Self {
        Self {
            db: Mutex::new(db),
            at: At::File(CatalogFile::new(path, opened)),
        }
    }

    /// The catalog in the database at `place` of a server, which is that installation's.
    pub(super) fn on_server(db: Database, place: String, own: InstallationRecord) -> Self {
        Self {
            db: Mutex::new(db),
            at: At::Server(CatalogServer::new(place, own)),
        }
    }

    /// Refuses a file whose catalog is on a server by now. Whoever is using it meanwhile has looked before.
    fn refuse_moved(&self) -> Result<(), CatalogError> {
        match (&self.at, self.idle_db()) {
            (At::File(file), Some(db)) => file.refuse_moved(&db),
            _ => Ok(()),
        }
    }

    /// Makes a lost catalog at `path` again with what its copy has: under another name, which is
    /// renamed when it is complete, so that a crash leaves no catalog or all of it. It is marked as one that may
    /// not know all that there is, and of which no vault's log is noted.
    ///
    /// # Errors
    /// [`CatalogError`]; there is no catalog at `path` then.
    pub fn make_again(path: &Path, from: &CatalogCopy) -> Result<Self, CatalogError> {
        let new = path.with_extension("db.new");
        let fail = |source| OpenError::Create {
            path: path.into(),
            what: SCHEMA.what,
            source,
        };
        for suffix in ["", "-wal", "-shm"] {
            let mut left = new.clone().into_os_string();
            left.push(suffix);
            match std::fs::remove_file(&left) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(fail(e).into()),
                _ => {}
            }
        }
        let made = Self::in_file(sqlite::open(&new, &SCHEMA)?.into(), &new, None);
        let InstallationRecord { operator, platform } = from.installation;
        made.db().execute(
            "INSERT INTO installation VALUES (1, ?, ?)",
            params![operator.to_string(), platform.to_string()],
        )?;
        for vault in &from.vaults {
            made.add_vault(vault)?;
        }
        // A set may have the identity of a user, and has one of its own that names the set.
        let is_of_user =
            |identity: &&IdentityRecord| matches!(identity.owner, IdentityOwner::Named(_));
        for identity in from.identities.iter().filter(is_of_user) {
            identities::insert(&made.db(), identity)?;
        }
        for set in &from.disk_encryption_sets {
            made.add_des(set)?;
        }
        for identity in from
            .identities
            .iter()
            .filter(|identity| !is_of_user(identity))
        {
            identities::insert(&made.db(), identity)?;
        }
        for credential in &from.federated_credentials {
            federated::insert(&made.db(), credential)?;
        }
        for record in &from.departed {
            departed::insert(&made.db(), record)?;
        }
        for group in &from.groups {
            management_rows::insert_group(&made.db(), group)?;
        }
        for placement in &from.placements {
            management_rows::insert_placement(&made.db(), placement)?;
        }
        for assignment in &from.role_assignments {
            management_rows::insert_assignment(&made.db(), assignment)?;
        }
        for lock in &from.locks {
            lock_rows::insert(&made.db(), lock)?;
        }
        if let Some(record) = &from.restored {
            restored::mark(&made.db(), record)?;
        }
        restored::mark(&made.db(), &RestoredRecord::made_again())?;
        noted::mark(&made.db())?;
        // Closing it puts everything into the main file, which is synced with that.
        drop(made);
        std::fs::rename(&new, path)
            .and_then(|()| std::fs::File::open(path.parent().unwrap_or(Path::new("."))))
            .and_then(|dir| dir.sync_all())
            .map_err(fail)?;
        Self::open(path)
    }

    /// What this catalog alone knows.
    fn current(&self) -> Result<CatalogCopy, CatalogError> {
        fn records<T>(rows: Vec<Stored<T>>) -> Vec<T> {
            rows.into_iter().map(|row| row.record).collect()
        }
        Ok(CatalogCopy::new(
            self.installation()?,
            records(self.vaults()?),
            records(self.all_des()?),
            records(self.identities()?),
            self.departed()?,
        )
        .with_federated(self.federated_credentials(None)?)
        .with_restored(self.restored()?)
        .with_management(
            self.groups()?,
            self.placements()?
                .into_iter()
                .filter(|placement| management_rows::is_copied(placement.kind))
                .collect(),
            self.role_assignments()?,
        )
        .with_locks(self.locks()?.into_iter().map(|lock| lock.record).collect()))
    }

    /// Writes the copy anew. The change that it follows is durable, so a failure is told and undoes
    /// nothing; the next change writes all of it again.
    fn copy(&self) {
        let At::File(file) = &self.at else {
            return;
        };
        // The copy beside another catalog is of that one.
        let known = *file.opened();
        if known.is_some() && FileId::at(&file.path).is_some_and(|found| Some(found) != known) {
            return;
        }
        if let Err(error) = CatalogCopy::replace(&file.path, || self.current()) {
            log::warn!("{error}; `sealdisk catalog rebuild` would miss the latest change");
        }
    }

    pub(super) fn copied<T>(&self, changed: Result<T, CatalogError>) -> Result<T, CatalogError> {
        if changed.is_ok() {
            self.copy();
        }
        changed
    }

    pub(super) fn db(&self) -> MutexGuard<'_, Database> {
        // A panic elsewhere rolled its transaction back; the connection itself is intact.
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`DatabaseCatalog::db`], unless somebody else has it right now.
    fn idle_db(&self) -> Option<MutexGuard<'_, Database>> {
        match self.db.try_lock() {
            Ok(db) => Some(db),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(super) fn select<T>(
        &self,
        sql: &str,
        values: &[Value<'_>],
        parse: impl FnMut(&Row) -> Result<T, CatalogError>,
    ) -> Result<Vec<T>, CatalogError> {
        self.db().select(sql, values, parse)
    }
}

impl Catalog for DatabaseCatalog {
    fn is_current(&self) -> bool {
        let At::File(file) = &self.at else {
            return true;
        };
        let known = *file.opened();
        known.is_some() && known == FileId::at(&file.path) && self.refuse_moved().is_ok()
    }

    fn renew(&self) -> Result<Option<InstallationRecord>, CatalogError> {
        let file = match &self.at {
            At::File(file) => file,
            At::Server(server) if server.is_due() => {
                // Whoever has it right now has not found anything else.
                let db = self.idle_db();
                return db.map_or(Ok(None), |db| server.refuse_exchanged(&db).map(|()| None));
            }
            At::Server(_) => return Ok(None),
        };
        let (path, mut opened) = (&file.path, file.opened());
        let found = FileId::at(path);
        if found == *opened {
            return self.refuse_moved().map(|()| None);
        }
        if found.is_none() {
            return Ok(None);
        }
        let Some(db) = sqlite::open_made(path, &SCHEMA)? else {
            return Ok(None);
        };
        let db = Database::from(db);
        let identities = own_identities(&db)?;
        // SQLite sees that the file of the old connection was moved, and removes no `-wal` at its end: that is the new
        // one's by now.
        *self.db() = db;
        file.unmoved.note(None);
        *opened = found.filter(|found| FileId::at(path) == Some(*found));
        Ok(Some(identities))
    }

    fn rest(&self) {
        self.db().disconnect();
    }

    fn installation(&self) -> Result<InstallationRecord, CatalogError> {
        own_identities(&self.db())
    }

    fn insert_vault(&self, record: &VaultRecord) -> Result<(), CatalogError> {
        self.copied(self.add_vault(record))
    }

    fn vault(&self, name: &str) -> Result<Stored<VaultRecord>, CatalogError> {
        let sql = format!("SELECT {VAULT_COLUMNS} FROM vaults WHERE name = ?");
        one(
            self.select(&sql, params![name], parse_vault)?,
            Kind::Vault,
            name,
        )
    }

    fn vault_by_url(&self, url: &str) -> Result<Option<Stored<VaultRecord>>, CatalogError> {
        let sql = format!("SELECT {VAULT_COLUMNS} FROM vaults WHERE url = ?");
        Ok(self.select(&sql, params![url], parse_vault)?.pop())
    }

    fn vaults(&self) -> Result<Vec<Stored<VaultRecord>>, CatalogError> {
        let sql = format!("SELECT {VAULT_COLUMNS} FROM vaults ORDER BY name");
        self.select(&sql, &[], parse_vault)
    }

    fn update_vault(&self, rev: Rev, record: &VaultRecord) -> Result<Rev, CatalogError> {
        self.copied(self.change_vault(rev, record))
    }

    fn delete_vault(&self, name: &str, rev: Rev) -> Result<(), CatalogError> {
        self.copied(self.remove_vault(name, rev))
    }

    fn forget_vault(&self, name: &str) -> Result<(), CatalogError> {
        noted::forget(&self.db(), name)?;
        let deleted = self
            .db()
            .execute("DELETE FROM vaults WHERE name = ?", params![name]);
        self.copied(deleted.map(drop).map_err(CatalogError::from))
    }

    fn note_purged_vault(&self, url: &str) -> Result<(), CatalogError> {
        purged::insert(&self.db(), url)
    }

    fn vault_purged_at(&self, url: &str) -> Result<Option<OffsetDateTime>, CatalogError> {
        purged::since(&self.db(), url)
    }

    fn forget_purged_vaults(&self) -> Result<(), CatalogError> {
        purged::forget(&self.db(), None)
    }

    fn insert_des(&self, record: &DiskEncryptionSetRecord) -> Result<(), CatalogError> {
        self.copied(self.add_des(record))
    }

    fn des(&self, name: &str) -> Result<Stored<DiskEncryptionSetRecord>, CatalogError> {
        let sql = format!("SELECT {DES_COLUMNS} FROM disk_encryption_sets WHERE name = ?");
        let found = self.select(&sql, params![name], parse_des)?;
        one(found, Kind::DiskEncryptionSet, name)
    }

    fn all_des(&self) -> Result<Vec<Stored<DiskEncryptionSetRecord>>, CatalogError> {
        let sql = format!("SELECT {DES_COLUMNS} FROM disk_encryption_sets ORDER BY name");
        self.select(&sql, &[], parse_des)
    }

    fn update_des(&self, rev: Rev, record: &DiskEncryptionSetRecord) -> Result<Rev, CatalogError> {
        self.copied(self.change_des(rev, record))
    }

    fn delete_des(&self, name: &str, rev: Rev) -> Result<(), CatalogError> {
        self.copied(self.remove_des(name, rev))
    }

    fn insert_disk(&self, record: &DiskRecord) -> Result<Rev, CatalogError> {
        let (rev, returned) = resources::insert(&self.db(), record)?;
        if returned {
            self.copy();
        }
        Ok(rev)
    }

    fn resource(&self, kind: ResourceKind, name: &str) -> Result<Stored<DiskRecord>, CatalogError> {
        let values = [kind.as_str(), name].map(ToValue::to_value);
        let found = resources::find(&self.db(), "kind = ? AND name = ?", &values)?;
        one(found, kind.into(), name)
    }

    fn resources(&self) -> Result<Vec<Stored<DiskRecord>>, CatalogError> {
        resources::find(&self.db(), "TRUE", &[])
    }

    fn unfinished(&self) -> Result<Vec<Stored<DiskRecord>>, CatalogError> {
        resources::find(&self.db(), resources::UNFINISHED, &[])
    }

    fn resources_named(
        &self,
        kind: ResourceKind,
        names: &[&str],
    ) -> Result<Vec<Stored<DiskRecord>>, CatalogError> {
        resources::named(&self.db(), kind, names)
    }

    fn resources_under(&self, des: Option<&str>) -> Result<Vec<Stored<DiskRecord>>, CatalogError> {
        resources::under(&self.db(), des)
    }

    fn update_disk(&self, rev: Rev, record: &DiskRecord) -> Result<Rev, CatalogError> {
        resources::update(&self.db(), rev, record)
    }

    fn delete_disk(&self, record: &DiskRecord, rev: Rev) -> Result<(), CatalogError> {
        let has_fewer = self.db().transaction(Mode::Write, |db| {
            let roles = management_rows::count_roles(db)?;
            resources::delete(db, rev, record)?;
            Ok::<_, CatalogError>(management_rows::count_roles(db)? != roles)
        })?;
        // The copy has roles, and no disks.
        if has_fewer {
            self.copy();
        }
        Ok(())
    }

    fn depart_disk(
        &self,
        record: &DiskRecord,
        rev: Rev,
        departed: &DepartedRecord,
    ) -> Result<(), CatalogError> {
        let done = resources::depart(&self.db(), rev, record, departed);
        self.copied(done)
    }

    fn not_noted_since(&self, vault_url: &str) -> Result<Option<OffsetDateTime>, CatalogError> {
        noted::missing_since(&self.db(), vault_url)
    }

    fn note_vault(
        &self,
        vault_url: &str,
        not_found: &[DepartedRecord],
    ) -> Result<(), CatalogError> {
        let noted = noted::insert(&self.db(), vault_url, not_found);
        self.copied(noted)
    }

    fn mark_restored(&self, record: &RestoredRecord) -> Result<(), CatalogError> {
        let marked = self.db().transaction(Mode::Write, |db| {
            restored::mark(db, record)?;
            noted::mark(db)
        });
        self.copied(marked)
    }

    fn restored(&self) -> Result<Option<RestoredRecord>, CatalogError> {
        restored::found(&self.db())
    }

    fn clear_restored(&self) -> Result<(), CatalogError> {
        let cleared = restored::clear(&self.db());
        self.copied(cleared)
    }

    fn departed(&self) -> Result<Vec<DepartedRecord>, CatalogError> {
        let sql = format!("{} ORDER BY kind, name, time, id", departed::SELECT);
        self.select(&sql, &[], departed::parse)
    }

    fn forget_departed(&self, id: Uuid) -> Result<bool, CatalogError> {
        let deleted = departed::delete(&self.db(), id);
        self.copied(deleted)
    }

    fn insert_merge(&self, layer: Uuid) -> Result<(), CatalogError> {
        self.db().execute(
            "INSERT INTO merges VALUES (?) ON CONFLICT DO NOTHING",
            params![layer.to_string()],
        )?;
        Ok(())
    }

    fn delete_merge(&self, layer: Uuid) -> Result<(), CatalogError> {
        let sql = "DELETE FROM merges WHERE layer = ?";
        self.db().execute(sql, params![layer.to_string()])?;
        Ok(())
    }

    fn merges(&self) -> Result<Vec<Uuid>, CatalogError> {
        self.select("SELECT layer FROM merges ORDER BY layer", &[], |row| {
            uuid("merges", row.text(0)?)
        })
    }

    fn insert_identity(&self, record: &IdentityRecord) -> Result<(), CatalogError> {
        let inserted = identities::insert(&self.db(), record);
        self.copied(inserted)
    }

    fn identity(&self, name: &str) -> Result<Stored<IdentityRecord>, CatalogError> {
        identities::named(&self.db(), name)
    }

    fn identity_of_des(&self, des: &str) -> Result<Stored<IdentityRecord>, CatalogError> {
        let of_des = |db: &Transaction<'_>| identities::of_des(db, des);
        let (found, is_new) = self.db().transaction(Mode::Write, of_des)?;
        if is_new {
            self.copy();
        }
        Ok(found)
    }

    fn identities(&self) -> Result<Vec<Stored<IdentityRecord>>, CatalogError> {
        identities::all(&self.db())
    }

    fn identity_by_object(&self, object_id: Uuid) -> Result<Option<IdentityRecord>, CatalogError> {
        identities::by_object(&self.db(), object_id)
    }

    fn identity_by_client(&self, client_id: Uuid) -> Result<Option<IdentityRecord>, CatalogError> {
        identities::by_client(&self.db(), client_id)
    }

    fn set_identity_secret(
        &self,
        identity: &Stored<IdentityRecord>,
        hash: Option<&[u8; 32]>,
        ends: Option<OffsetDateTime>,
    ) -> Result<(), CatalogError> {
        let set = identities::set_secret(&self.db(), identity, hash, ends);
        self.copied(set)
    }

    fn delete_identity(&self, identity: &Stored<IdentityRecord>) -> Result<(), CatalogError> {
        let deleted = identities::delete(&self.db(), identity);
        self.copied(deleted)
    }

    fn insert_federated_credential(
        &self,
        record: &FederatedCredentialRecord,
    ) -> Result<(), CatalogError> {
        let inserted = federated::insert(&self.db(), record);
        self.copied(inserted)
    }

    fn federated_credentials(
        &self,
        identity: Option<Uuid>,
    ) -> Result<Vec<FederatedCredentialRecord>, CatalogError> {
        federated::all(&self.db(), identity)
    }

    fn delete_federated_credential(
        &self,
        identity: Uuid,
        name: &str,
    ) -> Result<bool, CatalogError> {
        let deleted = federated::delete(&self.db(), identity, name);
        self.copied(deleted)
    }
}
