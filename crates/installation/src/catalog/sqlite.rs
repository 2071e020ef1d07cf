//! The catalog in an SQLite file.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, ffi, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::copy::{self, CatalogCopy};
use super::schema::SCHEMA;
use super::{
    Catalog, CatalogError, DepartedRecord, DiskEncryptionSetRecord, DiskRecord, IdentityRecord,
    InstallationRecord, Kind, Rev, Stored, VaultRecord, departed, identities, noted, resources,
};
use crate::envelope::ResourceKind;
use vault::sqlite::{DatabaseError, open};

const VAULT_COLUMNS: &str = "name, rev, url, kind, created";
const DES_COLUMNS: &str = "name, rev, identity, principal_id, key_url, previous_keys, \
                           auto_rotation, last_rotation, created";

/// The default catalog: `catalog.db` in the state directory.
pub struct SqliteCatalog {
    db: Mutex<Connection>,
    path: PathBuf,
}

impl SqliteCatalog {
    /// Opens the catalog at `path`, making an empty one when there is none.
    ///
    /// # Errors
    /// [`CatalogError::Open`]: also for a file of something else or of a newer version.
    pub fn open(path: &Path) -> Result<Self, CatalogError> {
        let catalog = Self {
            db: Mutex::new(open(path, &SCHEMA)?),
            path: path.into(),
        };
        if !copy::path_of(path).exists() {
            catalog.copy();
        }
        Ok(catalog)
    }

    /// Makes a lost catalog at `path` again with what its copy has: under another name, which is
    /// renamed when it is complete, so that a crash leaves no catalog or all of it. It is marked as one of
    /// which no vault's log is noted.
    ///
    /// # Errors
    /// [`CatalogError`]; there is no catalog at `path` then.
    pub fn make_again(path: &Path, from: &CatalogCopy) -> Result<Self, CatalogError> {
        let new = path.with_extension("db.new");
        let fail = |source| DatabaseError::Create {
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
        let made = Self {
            db: Mutex::new(open(&new, &SCHEMA)?),
            path: new.clone(),
        };
        let InstallationRecord { operator, platform } = from.installation;
        made.db().execute(
            "INSERT INTO installation VALUES (1, ?, ?)",
            params![operator.to_string(), platform.to_string()],
        )?;
        for vault in &from.vaults {
            made.add_vault(vault)?;
        }
        for set in &from.disk_encryption_sets {
            made.add_des(set)?;
        }
        for identity in &from.identities {
            identities::insert(&made.db(), identity)?;
        }
        for record in &from.departed {
            departed::insert(&made.db(), record)?;
        }
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
        ))
    }

    /// Writes the copy anew. The change that it follows is durable, so a failure is told and undoes
    /// nothing; the next change writes all of it again.
    fn copy(&self) {
        if let Err(error) = CatalogCopy::replace(&self.path, || self.current()) {
            log::warn!("{error}; `sealdisk catalog rebuild` would miss the latest change");
        }
    }

    fn copied<T>(&self, changed: Result<T, CatalogError>) -> Result<T, CatalogError> {
        if changed.is_ok() {
            self.copy();
        }
        changed
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        // A panic elsewhere rolled its transaction back; the connection itself is intact.
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn select<T>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        parse: impl Fn(&Row<'_>) -> Result<T, CatalogError>,
    ) -> Result<Vec<T>, CatalogError> {
        let db = self.db();
        let mut statement = db.prepare_cached(sql)?;
        let mut rows = statement.query(parameters)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(parse(row)?);
        }
        Ok(found)
    }

    fn add_vault(&self, record: &VaultRecord) -> Result<(), CatalogError> {
        let VaultRecord {
            name,
            url,
            kind,
            created,
        } = record;
        self.db()
            .execute(
                &format!("INSERT INTO vaults ({VAULT_COLUMNS}) VALUES (?, 1, ?, ?, ?)"),
                params![name, url, json(name, kind)?, time_text(name, *created)?],
            )
            .map_err(|e| constraint(e, Kind::Vault, name, None))?;
        Ok(())
    }

    fn change_vault(&self, rev: Rev, record: &VaultRecord) -> Result<Rev, CatalogError> {
        let name = &record.name;
        let changed = self
            .db()
            .execute(
                "UPDATE vaults SET rev = rev + 1, url = ?, kind = ?, created = ? \
                 WHERE name = ? AND rev = ?",
                params![
                    record.url,
                    json(name, &record.kind)?,
                    time_text(name, record.created)?,
                    name,
                    rev.0,
                ],
            )
            .map_err(|e| constraint(e, Kind::Vault, name, None))?;
        if changed == 0 {
            self.vault(name)?;
            return Err(stale(Kind::Vault, name));
        }
        Ok(Rev(rev.0 + 1))
    }

    fn remove_vault(&self, name: &str, rev: Rev) -> Result<(), CatalogError> {
        let url = self.vault(name)?.record.url;
        let mut db = self.db();
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let Some(set) = set_with_key_in(&transaction, &url)? {
            return Err(CatalogError::VaultInUse {
                name: name.into(),
                set,
            });
        }
        let deleted = transaction.execute(
            "DELETE FROM vaults WHERE name = ? AND rev = ?",
            params![name, rev.0],
        )?;
        transaction.commit()?;
        drop(db);
        if deleted == 0 {
            self.vault(name)?;
            return Err(stale(Kind::Vault, name));
        }
        Ok(())
    }

    fn add_des(&self, record: &DiskEncryptionSetRecord) -> Result<(), CatalogError> {
        let name = &record.name;
        self.db()
            .execute(
                &format!(
                    "INSERT INTO disk_encryption_sets ({DES_COLUMNS}) \
                     VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?)"
                ),
                params![
                    name,
                    json(name, &record.identity)?,
                    record.principal_id.to_string(),
                    record.key_url,
                    json(name, &record.previous_keys)?,
                    record.auto_rotation,
                    optional_time_text(name, record.last_rotation)?,
                    time_text(name, record.created)?,
                ],
            )
            .map_err(|e| constraint(e, Kind::DiskEncryptionSet, name, None))?;
        Ok(())
    }

    fn change_des(&self, rev: Rev, record: &DiskEncryptionSetRecord) -> Result<Rev, CatalogError> {
        let name = &record.name;
        let mut db = self.db();
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let changed = transaction.execute(
            "UPDATE disk_encryption_sets SET rev = rev + 1, identity = ?, principal_id = ?, \
             key_url = ?, previous_keys = ?, auto_rotation = ?, last_rotation = ?, created = ? \
             WHERE name = ? AND rev = ?",
            params![
                json(name, &record.identity)?,
                record.principal_id.to_string(),
                record.key_url,
                json(name, &record.previous_keys)?,
                record.auto_rotation,
                optional_time_text(name, record.last_rotation)?,
                time_text(name, record.created)?,
                name,
                rev.0,
            ],
        )?;
        if changed == 0 {
            drop(transaction);
            drop(db);
            self.des(name)?;
            return Err(stale(Kind::DiskEncryptionSet, name));
        }
        transaction.execute(
            "DELETE FROM identities WHERE des = ? AND object_id <> ?",
            params![name, record.principal_id.to_string()],
        )?;
        transaction.commit()?;
        Ok(Rev(rev.0 + 1))
    }

    fn remove_des(&self, name: &str, rev: Rev) -> Result<(), CatalogError> {
        let mut db = self.db();
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        resources::refuse_set_in_use(&transaction, name)?;
        let deleted = transaction.execute(
            "DELETE FROM disk_encryption_sets WHERE name = ? AND rev = ?",
            params![name, rev.0],
        )?;
        transaction.commit()?;
        drop(db);
        if deleted == 0 {
            self.des(name)?;
            return Err(stale(Kind::DiskEncryptionSet, name));
        }
        Ok(())
    }
}

impl Catalog for SqliteCatalog {
    fn installation(&self) -> Result<InstallationRecord, CatalogError> {
        let db = self.db();
        db.execute(
            "INSERT INTO installation VALUES (1, ?, ?) ON CONFLICT DO NOTHING",
            params![Uuid::new_v4().to_string(), Uuid::new_v4().to_string()],
        )?;
        let mut statement = db.prepare_cached("SELECT operator, platform FROM installation")?;
        let mut rows = statement.query([])?;
        let row = rows.next()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        Ok(InstallationRecord {
            operator: uuid("installation", &row.get::<_, String>(0)?)?,
            platform: uuid("installation", &row.get::<_, String>(1)?)?,
        })
    }

    fn insert_vault(&self, record: &VaultRecord) -> Result<(), CatalogError> {
        self.copied(self.add_vault(record))
    }

    fn vault(&self, name: &str) -> Result<Stored<VaultRecord>, CatalogError> {
        let sql = format!("SELECT {VAULT_COLUMNS} FROM vaults WHERE name = ?");
        one(self.select(&sql, [name], parse_vault)?, Kind::Vault, name)
    }

    fn vault_by_url(&self, url: &str) -> Result<Option<Stored<VaultRecord>>, CatalogError> {
        let sql = format!("SELECT {VAULT_COLUMNS} FROM vaults WHERE url = ?");
        Ok(self.select(&sql, [url], parse_vault)?.pop())
    }

    fn vaults(&self) -> Result<Vec<Stored<VaultRecord>>, CatalogError> {
        let sql = format!("SELECT {VAULT_COLUMNS} FROM vaults ORDER BY name");
        self.select(&sql, [], parse_vault)
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
            .execute("DELETE FROM vaults WHERE name = ?", [name]);
        self.copied(deleted.map(drop).map_err(CatalogError::from))
    }

    fn insert_des(&self, record: &DiskEncryptionSetRecord) -> Result<(), CatalogError> {
        self.copied(self.add_des(record))
    }

    fn des(&self, name: &str) -> Result<Stored<DiskEncryptionSetRecord>, CatalogError> {
        let sql = format!("SELECT {DES_COLUMNS} FROM disk_encryption_sets WHERE name = ?");
        let found = self.select(&sql, [name], parse_des)?;
        one(found, Kind::DiskEncryptionSet, name)
    }

    fn all_des(&self) -> Result<Vec<Stored<DiskEncryptionSetRecord>>, CatalogError> {
        let sql = format!("SELECT {DES_COLUMNS} FROM disk_encryption_sets ORDER BY name");
        self.select(&sql, [], parse_des)
    }

    fn update_des(&self, rev: Rev, record: &DiskEncryptionSetRecord) -> Result<Rev, CatalogError> {
        self.copied(self.change_des(rev, record))
    }

    fn delete_des(&self, name: &str, rev: Rev) -> Result<(), CatalogError> {
        self.copied(self.remove_des(name, rev))
    }

    fn insert_disk(&self, record: &DiskRecord) -> Result<Rev, CatalogError> {
        let (rev, returned) = resources::insert(&mut self.db(), record)?;
        if returned {
            self.copy();
        }
        Ok(rev)
    }

    fn resource(&self, kind: ResourceKind, name: &str) -> Result<Stored<DiskRecord>, CatalogError> {
        let sql = resources::select("kind = ? AND name = ?");
        let found = self.select(&sql, [kind.as_str(), name], resources::parse)?;
        one(found, kind.into(), name)
    }

    fn resources(&self) -> Result<Vec<Stored<DiskRecord>>, CatalogError> {
        self.select(&resources::select("TRUE"), [], resources::parse)
    }

    fn resources_under(&self, des: Option<&str>) -> Result<Vec<Stored<DiskRecord>>, CatalogError> {
        let sql = resources::select(resources::UNDER_SET);
        self.select(&sql, [des], resources::parse)
    }

    fn update_disk(&self, rev: Rev, record: &DiskRecord) -> Result<Rev, CatalogError> {
        resources::update(&mut self.db(), rev, record)
    }

    fn delete_disk(&self, record: &DiskRecord, rev: Rev) -> Result<(), CatalogError> {
        resources::delete(&self.db(), rev, record)
    }

    fn depart_disk(
        &self,
        record: &DiskRecord,
        rev: Rev,
        departed: &DepartedRecord,
    ) -> Result<(), CatalogError> {
        let done = resources::depart(&mut self.db(), rev, record, departed);
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
        let noted = noted::insert(&mut self.db(), vault_url, not_found);
        self.copied(noted)
    }

    fn departed(&self) -> Result<Vec<DepartedRecord>, CatalogError> {
        let sql = "SELECT * FROM departed ORDER BY kind, name, time, id";
        self.select(sql, [], departed::parse)
    }

    fn forget_departed(&self, id: Uuid) -> Result<bool, CatalogError> {
        let deleted = departed::delete(&self.db(), id);
        self.copied(deleted)
    }

    fn insert_merge(&self, layer: Uuid) -> Result<(), CatalogError> {
        self.db().execute(
            "INSERT INTO merges VALUES (?) ON CONFLICT DO NOTHING",
            [layer.to_string()],
        )?;
        Ok(())
    }

    fn delete_merge(&self, layer: Uuid) -> Result<(), CatalogError> {
        self.db()
            .execute("DELETE FROM merges WHERE layer = ?", [layer.to_string()])?;
        Ok(())
    }

    fn merges(&self) -> Result<Vec<Uuid>, CatalogError> {
        self.select("SELECT layer FROM merges ORDER BY layer", [], |row| {
            uuid("merges", &row.get::<_, String>(0)?)
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
        let mut db = self.db();
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let known = transaction.total_changes();
        let found = identities::of_des(&transaction, des)?;
        let made = transaction.total_changes() != known;
        transaction.commit()?;
        drop(db);
        if made {
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
        hash: &[u8; 32],
    ) -> Result<(), CatalogError> {
        let set = identities::set_secret(&self.db(), identity, hash);
        self.copied(set)
    }

    fn delete_identity(&self, identity: &Stored<IdentityRecord>) -> Result<(), CatalogError> {
        let deleted = identities::delete(&self.db(), identity);
        self.copied(deleted)
    }
}

fn parse_vault(row: &Row<'_>) -> Result<Stored<VaultRecord>, CatalogError> {
    let name: String = row.get("name")?;
    Ok(Stored {
        rev: Rev(row.get("rev")?),
        record: VaultRecord {
            url: row.get("url")?,
            kind: parse_json(&name, "kind", &row.get::<_, String>("kind")?)?,
            created: parse_time(&name, &row.get::<_, String>("created")?)?,
            name,
        },
    })
}

fn parse_des(row: &Row<'_>) -> Result<Stored<DiskEncryptionSetRecord>, CatalogError> {
    let name: String = row.get("name")?;
    let previous: String = row.get("previous_keys")?;
    let last_rotation: Option<String> = row.get("last_rotation")?;
    Ok(Stored {
        rev: Rev(row.get("rev")?),
        record: DiskEncryptionSetRecord {
            identity: parse_json(&name, "identity", &row.get::<_, String>("identity")?)?,
            principal_id: uuid(&name, &row.get::<_, String>("principal_id")?)?,
            key_url: row.get("key_url")?,
            previous_keys: parse_json(&name, "previous_keys", &previous)?,
            auto_rotation: row.get("auto_rotation")?,
            last_rotation: last_rotation.map(|t| parse_time(&name, &t)).transpose()?,
            created: parse_time(&name, &row.get::<_, String>("created")?)?,
            name,
        },
    })
}

fn one<T>(found: Vec<T>, kind: Kind, name: &str) -> Result<T, CatalogError> {
    found.into_iter().next().ok_or_else(|| missing(kind, name))
}

pub(super) fn missing(kind: Kind, name: &str) -> CatalogError {
    CatalogError::NotFound {
        kind,
        name: name.into(),
    }
}

pub(super) fn stale(kind: Kind, name: &str) -> CatalogError {
    CatalogError::Changed {
        kind,
        name: name.into(),
    }
}

pub(super) fn damaged(name: &str, what: impl ToString) -> CatalogError {
    CatalogError::Damaged {
        name: name.into(),
        what: what.to_string(),
    }
}

/// Says what a violated constraint means: a taken name, or a disk encryption set that is not there.
pub(super) fn constraint(
    error: rusqlite::Error,
    kind: Kind,
    name: &str,
    des: Option<&str>,
) -> CatalogError {
    let extended = error.sqlite_error().map(|e| e.extended_code);
    match (extended, des) {
        (Some(ffi::SQLITE_CONSTRAINT_FOREIGNKEY), Some(des)) => {
            missing(Kind::DiskEncryptionSet, des)
        }
        (Some(ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_UNIQUE), _) => {
            CatalogError::Exists {
                kind,
                name: name.into(),
            }
        }
        _ => error.into(),
    }
}

pub(super) fn json(name: &str, value: &impl Serialize) -> Result<String, CatalogError> {
    serde_json::to_string(value).map_err(|e| damaged(name, e))
}

pub(super) fn parse_json<T: DeserializeOwned>(
    name: &str,
    what: &str,
    text: &str,
) -> Result<T, CatalogError> {
    serde_json::from_str(text).map_err(|e| damaged(name, format!("{what}: {e}")))
}

/// The first disk encryption set whose active key, or that of anything under it, is in a vault.
fn set_with_key_in(db: &Connection, vault_url: &str) -> Result<Option<String>, CatalogError> {
    let keys = format!("{vault_url}/keys/");
    // Compared as bytes: LIKE would take '_' for anything.
    let sql = "SELECT name FROM (
                   SELECT name, key_url FROM disk_encryption_sets
                   UNION ALL SELECT des, key_url FROM resources WHERE des IS NOT NULL
                   UNION ALL SELECT des, key_url FROM layer_uses WHERE des IS NOT NULL
               ) WHERE substr(key_url, 1, length(?1)) = ?1 ORDER BY name LIMIT 1";
    let name = db.query_row(sql, [keys], |row| row.get(0)).optional()?;
    Ok(name)
}

pub(super) fn uuid(name: &str, text: &str) -> Result<Uuid, CatalogError> {
    Uuid::parse_str(text).map_err(|e| damaged(name, format!("'{text}': {e}")))
}

pub(super) fn parse_time(name: &str, text: &str) -> Result<OffsetDateTime, CatalogError> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|e| damaged(name, format!("'{text}': {e}")))
}

pub(super) fn time_text(name: &str, time: OffsetDateTime) -> Result<String, CatalogError> {
    time.format(&Rfc3339).map_err(|e| damaged(name, e))
}

fn optional_time_text(
    name: &str,
    time: Option<OffsetDateTime>,
) -> Result<Option<String>, CatalogError> {
    time.map(|t| time_text(name, t)).transpose()
}
